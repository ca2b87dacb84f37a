"""What a worker is asked to do, and what every way of doing it looks like."""
