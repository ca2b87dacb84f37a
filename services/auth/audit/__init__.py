"""The audit log: sensitive acts and refused ones, in hash chains that show whether a row was changed."""
