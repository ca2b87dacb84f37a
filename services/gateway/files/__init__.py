"""Files that people upload and that jobs write: sealed parts in PostgreSQL or an object store."""
