"""Organizations: tenants with several members, and invitations."""
