"""Serves OpenAI's API."""
