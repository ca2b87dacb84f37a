"""The nodes of the mesh: tickets, certificates, revocation."""
