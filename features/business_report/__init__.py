"""Reports on usage and cost for administrators, statements for node owners, and a cost plan."""
