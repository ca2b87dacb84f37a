"""What pages and commands show alike. Pure."""
