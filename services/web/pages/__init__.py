"""The pages, one file per subject: its routes, its forms, and what its template is given."""
