"""The auth service: users, API keys, sessions and access tokens."""
