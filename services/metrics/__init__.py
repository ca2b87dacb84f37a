"""The metrics service: the numbers of the whole mesh in one text, and the health of the whole."""
