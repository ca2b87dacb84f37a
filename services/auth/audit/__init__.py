"""The audit log: sensitive acts and refusals, in hash chains that reveal changed rows."""
