"""Whether a request may go to a worker, and who asks."""
