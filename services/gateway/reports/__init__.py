"""Days that are summed up, and the report that is made of them."""
