"""Model files: what their headers say, and whether llama.cpp may see them."""
