"""The pages about one's own account: signing in, security, settings, one's own data."""
