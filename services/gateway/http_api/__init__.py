"""Serves HTTP: routes, bodies, errors, and their reference."""
