"""Keys, limits and one address in front of the servers that a machine runs already: Ollama, LM Studio, vLLM and others."""
