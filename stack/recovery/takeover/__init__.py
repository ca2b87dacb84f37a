"""A second site: follows the store, and takes the mesh over."""
