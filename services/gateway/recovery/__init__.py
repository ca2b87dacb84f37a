"""The gateway's part of the recovery log: paid credits, refunds, invoices, plans and policies survive the restore of an older database."""
