"""What a request may cost, what it did cost, and the books of both."""
