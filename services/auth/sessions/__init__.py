"""Sessions, tokens, and limits on failed logins."""
