"""Ollama's API, for programs that know no other."""
