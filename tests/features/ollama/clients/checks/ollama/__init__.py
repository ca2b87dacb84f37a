"""Ollama's own client, against `aicli serve` at its port, with the scripted model."""
