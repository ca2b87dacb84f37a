"""A small client for Valkey and Redis, used only by ``shared.stores.cache``: pipelined commands over one connection."""
