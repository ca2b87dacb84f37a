"""Vectors for texts: their queue, their batches and their pooling."""
