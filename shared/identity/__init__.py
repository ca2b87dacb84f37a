"""Keys, certificates, tickets and API keys: who somebody is, and how that is proved."""
