"""HTTP connections of our ports."""
