"""Organisations: tenants that several people share, who belongs to them, and invitations."""
