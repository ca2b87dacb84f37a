"""The keys that sign access tokens: creation, publication and rotation, without a token being refused because of it."""
