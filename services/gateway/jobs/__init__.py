"""Work that nobody waits for: jobs and their lines."""
