"""Models that other servers run: those with OpenAI's API, Ollama, and registries of services."""
