"""Files that people upload and that jobs write, encrypted, in PostgreSQL or an object store."""
