"""The usage export on the pages."""
