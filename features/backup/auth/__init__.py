"""Reports of the backup agent in auth."""
