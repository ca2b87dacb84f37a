"""The HTTP door: routes, bodies, errors, and the reference of all of it."""
