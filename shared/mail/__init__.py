"""Mail to people: its form, the way out, and what waits for a server that is away. What it says is its sender's."""
