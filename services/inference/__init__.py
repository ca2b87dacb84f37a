"""inference: a worker. Owns the models on this box and runs prompts on them."""
