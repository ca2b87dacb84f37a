"""The metrics service: metrics and health of the whole mesh, history, traces and alerts."""
