"""A package of its own: paddle-python-sdk brings another one with this name, which would win over a folder."""
