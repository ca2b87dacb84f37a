"""Other servers in the stack."""
