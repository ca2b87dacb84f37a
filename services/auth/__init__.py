"""auth: who somebody is. Owns users, API keys, sessions and access tokens."""
