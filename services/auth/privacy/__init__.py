"""One's own data, out and away; and how long the rest is kept."""
