"""The check of models in the gateway."""
