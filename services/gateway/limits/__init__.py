"""What a caller may use in an hour, a minute and at once."""
