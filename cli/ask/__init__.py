"""Commands that prompt a model, list models and nodes, or show the trace of a request."""
