"""Post JSON to a webhook of the operator. Its address never appears in logs and health."""

import asyncio
from collections.abc import Mapping

import httpx

from shared.transports.http_transport import HttpTransport


async def post(url: str, body: bytes, seconds: float, headers: Mapping[str, str] = {}) -> str:
    """Return why it failed; empty if it succeeded. The body of the response is not read."""
    sent = {"content-type": "application/json", **headers}
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(transport=HttpTransport(trust_env=False), timeout=seconds) as client,
            client.stream("POST", url, content=body, headers=sent) as answer,
        ):
            return "" if answer.is_success else f"returned {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"not responding: {type(error).__name__}"
