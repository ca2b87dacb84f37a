"""The OTLP endpoint: a collector, Jaeger, Tempo, or whatever else takes OTLP over HTTP."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import httpx

from services.metrics.export.otlp import partial_success
from services.metrics.export.otlp.partial_success import Rejection
from shared import errors

#: From the first byte that is sent to the end of the answer: one that comes byte by byte must not hold up the rest for ever.
_SECONDS: Final = 10.0
#: The answer to traces or logs that are taken is a few words. One of more bytes is not read.
_MOST_ANSWER_BYTES: Final = 64 * 1024
#: An answer that is packed would have to be unpacked within bounds; these are a few words.
_HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}
#: Words of OTEL_EXPORTER_OTLP_HEADERS that are no less; "Bearer" and a tenant's number are none.
_SHORTEST_SECRET: Final = 8
#: It will take these later; all other refusals stand.
_LATER: Final = frozenset({408, 429, 502, 503, 504})


#: Path and body; what of it was not taken, or None. Raises Unavailable where it may be tried again, and BadRequest where this will never
#: be taken.
Post = Callable[[str, bytes], Awaitable[Rejection | None]]


@asynccontextmanager
async def opened(url: str, headers: Mapping[str, str]) -> AsyncIterator[Post]:
    """``url`` is without the path, as OTEL_EXPORTER_OTLP_ENDPOINT has it."""
    secrets = [word for value in headers.values() for word in value.split() if len(word) >= _SHORTEST_SECRET]
    async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False, headers={**headers, **_HEADERS}) as client:

        async def post(path: str, body: bytes) -> Rejection | None:
            try:
                async with asyncio.timeout(_SECONDS), client.stream("POST", url.rstrip("/") + path, content=body) as answer:
                    told = await _read(answer)
            except (httpx.HTTPError, ssl.SSLError, OSError) as error:
                raise errors.Unavailable(f"{url} does not answer: {type(error).__name__}") from error
            if answer.status_code in _LATER:
                raise errors.Unavailable(f"{url} answers {answer.status_code}", retry_after_seconds=_wait_seconds(answer))
            if answer.status_code >= 300:
                raise errors.BadRequest(f"{url} refuses {path} with {answer.status_code}", hint="is it the address of an OTLP endpoint?")
            return _without(secrets, partial_success.read(answer.headers.get("content-type", ""), told))

        yield post


async def _read(answer: httpx.Response) -> bytes:
    """To its end, so that the connection can be used again; one that has too much to say is cut off, and says nothing."""
    told = bytearray()
    async for chunk in answer.aiter_raw():
        told += chunk
        if len(told) > _MOST_ANSWER_BYTES:
            return b""
    return bytes(told)


def _without(secrets: Iterable[str], rejection: Rejection | None) -> Rejection | None:
    """Some endpoints quote what they were sent; what it says is logged, and shown."""
    if rejection is None:
        return None
    why = rejection.why
    for secret in secrets:
        why = why.replace(secret, "…")
    return replace(rejection, why=why)


def _wait_seconds(answer: httpx.Response) -> float | None:
    """As it asks for; a date is not waited for, since its clock may be another one."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= len("86400") else None


def read_headers(text: str) -> dict[str, str]:
    """``name=value,name=value``, as OTEL_EXPORTER_OTLP_HEADERS has them. Raises ValueError, without a value in its words."""
    found: dict[str, str] = {}
    for number, part in enumerate(filter(None, (each.strip() for each in text.split(","))), 1):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().replace("-", "").isalnum() or not name.isascii() or not value.isprintable():
            raise ValueError(f"header {number} is not name=value")
        found[name.strip().lower()] = value.strip()
    return found
