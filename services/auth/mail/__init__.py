"""Mail to people: what it says, and how it gets out."""
