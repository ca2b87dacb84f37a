"""The gateway: the public API, limits, routing to workers, and the record of what was used."""
