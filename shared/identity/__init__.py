"""Keys, certificates, tickets and API keys: identities and their proofs."""
