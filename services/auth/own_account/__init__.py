"""What people do with their own account: profile, preferences, password."""
