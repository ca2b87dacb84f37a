"""The pages, one file per subject, with its routes, forms and template data."""
