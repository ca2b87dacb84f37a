"""The keys that sign access tokens: made, published, followed by the next and forgotten, without a token that is refused for it."""
