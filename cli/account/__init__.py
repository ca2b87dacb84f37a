"""Commands about one's own account: login, keys, usage."""
