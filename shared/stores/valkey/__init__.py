"""A small client for Valkey and Redis: commands that are joined and answered in their order over one connection. Only
``shared.stores.cache`` uses it. ``resp`` is the wire without I/O, ``valkey_url`` what a URL says, ``valkey_client`` the connection."""
