"""Follow a live page over a real server, because an in-process client cannot read an endless stream."""

import asyncio
import json
from typing import Any

import httpx

from tests.services.web import servers
from tests.services.web.browser import Browser

_PATIENCE_SECONDS = 30


async def first_event(app: object, path: str, username: str, password: str = "correct horse") -> dict[str, Any]:
    """Return the first event of the stream at ``path`` for a signed-in user."""
    async with servers.serving(app) as origin, httpx.AsyncClient(base_url=origin) as client:
        await Browser(client).sign_in(username, password)
        async with asyncio.timeout(_PATIENCE_SECONDS), client.stream("GET", path) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    return found
    raise AssertionError("the stream ended without an event")
