"""Serves OpenAI's API, and Anthropic's messages."""
