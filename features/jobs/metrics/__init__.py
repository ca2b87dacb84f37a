"""Jobs in metrics."""
