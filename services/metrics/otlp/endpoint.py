"""The OTLP endpoint: a collector, Jaeger, Tempo, or whatever else takes OTLP over HTTP."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import httpx

from shared import errors

_SECONDS: Final = 10.0
#: It will take these later; all other refusals stand.
_LATER: Final = frozenset({408, 429, 502, 503, 504})


#: Path and body. Raises Unavailable where it may be tried again, and BadRequest where this will never be taken.
Post = Callable[[str, bytes], Awaitable[None]]


@asynccontextmanager
async def opened(url: str, headers: Mapping[str, str]) -> AsyncIterator[Post]:
    """``url`` is without the path, as OTEL_EXPORTER_OTLP_ENDPOINT has it."""
    async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False, headers={**headers, "content-type": "application/json"}) as client:

        async def post(path: str, body: bytes) -> None:
            try:
                answer = await client.post(url.rstrip("/") + path, content=body)
            except (httpx.HTTPError, ssl.SSLError, OSError) as error:
                raise errors.Unavailable(f"{url} does not answer: {type(error).__name__}") from error
            if answer.status_code in _LATER:
                raise errors.Unavailable(f"{url} answers {answer.status_code}")
            if answer.status_code >= 300:
                raise errors.BadRequest(f"{url} refuses {path} with {answer.status_code}", hint="is it the address of an OTLP endpoint?")

        yield post


def read_headers(text: str) -> dict[str, str]:
    """``name=value,name=value``, as OTEL_EXPORTER_OTLP_HEADERS has them. Raises ValueError, without a value in its words."""
    found: dict[str, str] = {}
    for number, part in enumerate(filter(None, (each.strip() for each in text.split(","))), 1):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().replace("-", "").isalnum() or not name.isascii() or not value.isprintable():
            raise ValueError(f"header {number} is not name=value")
        found[name.strip().lower()] = value.strip()
    return found
