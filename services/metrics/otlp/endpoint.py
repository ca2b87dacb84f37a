"""The OTLP endpoint: a collector, Jaeger, Tempo, or whatever else takes OTLP over HTTP."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import httpx

from shared import errors

#: From the first byte that is sent to the end of the answer: one that comes byte by byte must not hold up the rest for ever.
_SECONDS: Final = 10.0
#: The answer to traces or logs that are taken is a few words. What is behind these nobody reads.
_MOST_ANSWER_BYTES: Final = 64 * 1024
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
                async with asyncio.timeout(_SECONDS), client.stream("POST", url.rstrip("/") + path, content=body) as answer:
                    await _read(answer)
            except (httpx.HTTPError, ssl.SSLError, OSError) as error:
                raise errors.Unavailable(f"{url} does not answer: {type(error).__name__}") from error
            if answer.status_code in _LATER:
                raise errors.Unavailable(f"{url} answers {answer.status_code}", retry_after_seconds=_wait_seconds(answer))
            if answer.status_code >= 300:
                raise errors.BadRequest(f"{url} refuses {path} with {answer.status_code}", hint="is it the address of an OTLP endpoint?")

        yield post


async def _read(answer: httpx.Response) -> None:
    """To its end, so that the connection can be used again; one that has too much to say is cut off."""
    size = 0
    async for chunk in answer.aiter_raw():
        size += len(chunk)
        if size > _MOST_ANSWER_BYTES:
            return


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
