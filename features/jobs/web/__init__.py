"""Jobs in web."""
