"""Jobs that a worker runs, and the interface of the backends that run them."""
