"""A small client for Valkey and Redis: commands that are joined and answered in their order over one connection. Only ``shared.cache``
uses it. ``protocol`` is the wire without I/O, ``address`` what a URL says, ``client`` the connection."""
