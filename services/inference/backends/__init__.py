"""The backends, one module each; they implement the interface in `backend_interface`."""
