"""Sessions, form tokens, and access to pages."""
