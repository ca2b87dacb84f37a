"""Statements of node owners in the gateway."""
