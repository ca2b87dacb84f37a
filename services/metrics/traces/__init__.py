"""The traces of the whole mesh: read from every node, kept for a while, and handed on to whoever stores them."""
