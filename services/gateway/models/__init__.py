"""Which models people can find, which the mesh has, their versions and files, and on which machines it puts them."""
