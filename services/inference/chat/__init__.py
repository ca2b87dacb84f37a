"""Chat templates by llama.cpp's own library: rendering prompts and reading answers (docs/decisions/0025)."""
