"""Which models people can find, which the mesh has, and on which machines it puts them."""
