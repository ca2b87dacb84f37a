"""Who may do what, and the hash chains of the audit log that show what was done."""
