"""Images for models that see: decoded in the chat process, and turned into embeddings in the engine's process."""
