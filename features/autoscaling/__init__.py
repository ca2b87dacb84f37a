"""How many workers each pool needs, for the hooks and autoscalers that start and stop them."""
