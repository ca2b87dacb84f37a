"""The pages of the report, statements and cost plan."""
