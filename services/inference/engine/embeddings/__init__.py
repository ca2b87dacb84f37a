"""Embeddings: the queue of texts, their batches and the pooling of vectors."""
