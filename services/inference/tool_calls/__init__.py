"""How models write calls of tools, and how these are found in their answers. Pure."""
