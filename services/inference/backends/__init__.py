"""The ways of running a model, one module each, behind the Protocol in `backend_interface`."""
