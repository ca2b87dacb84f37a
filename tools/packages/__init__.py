"""Packages as a mesh serves them and as a release has them."""
