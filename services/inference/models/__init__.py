"""Which models a worker has, what they need, and which of them are in memory."""
