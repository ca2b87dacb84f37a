"""Files in web."""
