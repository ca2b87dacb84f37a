"""The backends, one module each; they implement the Protocol in `backend_interface`."""
