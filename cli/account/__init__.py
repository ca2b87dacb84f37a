"""Commands for your own account: login, keys, usage."""
