"""Files in gateway."""
