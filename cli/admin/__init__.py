"""Commands for administrators: users, money, alerts, the audit log."""
