"""Other programs' HTTP servers as backends: Ollama, and all that have OpenAI's API."""
