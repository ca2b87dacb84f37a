"""The usage export in metrics."""
