"""Jobs in gateway."""
