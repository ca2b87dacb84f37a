"""Ollama's API in the gateway."""
