"""Reads and checks the headers of model files before llama.cpp sees them."""
