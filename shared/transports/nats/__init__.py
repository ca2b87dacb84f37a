"""NATS by nats-py: core messages, headers, several kinds of login, a new connection after each loss. See docs/decisions/0003-nats-py.md."""

import sys

# nats-py imports aiohttp for its WebSockets if it is installed: 0.3 s and 9 MB in every service. We have our own.
_aiohttp = sys.modules.get("aiohttp")
sys.modules["aiohttp"] = None  # type: ignore[assignment]
import nats.aio.client  # noqa: E402, F401

del sys.modules["aiohttp"]
if _aiohttp is not None:
    sys.modules["aiohttp"] = _aiohttp
