"""Structured output: from a JSON schema or a grammar of the caller's to one that llama.cpp can be given without harm."""
