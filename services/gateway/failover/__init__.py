"""Runs requests on workers, and fails over to another worker when one is lost."""
