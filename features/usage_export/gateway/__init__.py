"""The usage export in the gateway."""
