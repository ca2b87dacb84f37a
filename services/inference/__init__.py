"""The inference service: a worker. It owns the models on this machine and runs prompts on them."""
