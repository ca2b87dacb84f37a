"""Structured output: turns a caller's JSON schema or grammar into a grammar that is safe for llama.cpp."""
