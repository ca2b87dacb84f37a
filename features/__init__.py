"""Features: each folder can be taken away. `docs/architecture.md` lists them."""
