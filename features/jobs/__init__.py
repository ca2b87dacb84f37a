"""Requests that nobody waits for: batches, single jobs and responses in the background."""
