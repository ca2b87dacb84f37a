"""Send data to an OTLP endpoint over HTTP: a collector, Jaeger or Tempo."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import httpx

from services.metrics.export import partial_success
from services.metrics.export.partial_success import Rejection
from shared import errors
from shared.transports.http_transport import HttpTransport

#: The deadline for the whole request, including a slow response.
_SECONDS: Final = 10.0
#: Responses are short. Longer ones are not read.
_MAX_ANSWER_BYTES: Final = 64 * 1024
#: Request uncompressed responses, which need no decompression limit.
_HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}
#: The minimum length of a secret in OTEL_EXPORTER_OTLP_HEADERS; "Bearer" and tenant numbers are shorter.
_MIN_SECRET: Final = 8
_LATER: Final = frozenset({408, 429, 502, 503, 504})


#: Sends a body to a path. Returns what was rejected, or None. Raises Unavailable if a retry can help, and BadRequest if not.
Post = Callable[[str, bytes], Awaitable[Rejection | None]]


@asynccontextmanager
async def opened(url: str, headers: Mapping[str, str]) -> AsyncIterator[Post]:
    """Open the client. ``url`` has no path, as in OTEL_EXPORTER_OTLP_ENDPOINT."""
    secrets = [word for value in headers.values() for word in value.split() if len(word) >= _MIN_SECRET]
    async with httpx.AsyncClient(transport=HttpTransport(trust_env=False), timeout=_SECONDS, headers={**headers, **_HEADERS}) as client:

        async def post(path: str, body: bytes) -> Rejection | None:
            try:
                async with asyncio.timeout(_SECONDS), client.stream("POST", url.rstrip("/") + path, content=body) as answer:
                    answer_body = await _read(answer)
            except (httpx.HTTPError, ssl.SSLError, OSError) as error:
                raise errors.Unavailable(f"{url} is not responding: {type(error).__name__}") from error
            if answer.status_code in _LATER:
                raise errors.Unavailable(f"{url} returned {answer.status_code}", retry_after_seconds=_wait_seconds(answer))
            if answer.status_code >= 300:
                raise errors.BadRequest(f"{url} rejected {path} with {answer.status_code}", hint="check OTEL_EXPORTER_OTLP_ENDPOINT")
            return _without(secrets, partial_success.read(answer.headers.get("content-type", ""), answer_body))

        yield post


async def _read(answer: httpx.Response) -> bytes:
    """Read the whole response, so that the connection can be reused. Returns nothing if it is too long."""
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            return b""
    return bytes(body)


def _without(secrets: Iterable[str], rejection: Rejection | None) -> Rejection | None:
    """Remove our secrets from the reason, which is logged and shown: some endpoints quote the request."""
    if rejection is None:
        return None
    why = rejection.why
    for secret in secrets:
        why = why.replace(secret, "…")
    return replace(rejection, why=why)


def _wait_seconds(answer: httpx.Response) -> float | None:
    """Return Retry-After in seconds. Dates are ignored, because clocks differ."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= len("86400") else None


def read_headers(text: str) -> dict[str, str]:
    """Parse OTEL_EXPORTER_OTLP_HEADERS, ``name=value,name=value``. Raises ValueError without quoting values."""
    found: dict[str, str] = {}
    for number, part in enumerate(filter(None, (each.strip() for each in text.split(","))), 1):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().replace("-", "").isalnum() or not name.isascii() or not value.isprintable():
            raise ValueError(f"header {number} is not name=value")
        found[name.strip().lower()] = value.strip()
    return found
