"""Developer tools: setup, generated documentation, locks and releases. Installed packages do not contain them."""
