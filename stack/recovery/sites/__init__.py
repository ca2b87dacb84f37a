"""Which site owns the mesh: terms, leases, and what a replaced site does."""
