"""Runs a request on workers, on another one where the first is lost."""
