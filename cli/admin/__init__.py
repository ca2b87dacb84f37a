"""Commands for administrators: people, money, alerts, the audit log."""
