"""The gateway's part of the recovery log: paid credits, refunds and policies survive the restore of an older database."""
