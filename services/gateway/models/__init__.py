"""Which models the mesh has, and on which machines it puts them."""
