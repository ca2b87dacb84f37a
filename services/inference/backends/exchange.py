"""A server that is asked over HTTP: its pool of connections, how long it may take, what is asked twice, and what its failures mean."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx

from services.inference.backends import refusals
from services.inference.backends.event_stream import UNREADABLE, BadStream
from services.inference.backends.refusals import Refusal, Source
from shared import errors
from shared.telemetry import logs

log = logs.get()

#: A list of models is small and ready; a server that needs longer for it would not answer prompts either.
LIST_SECONDS = 10.0
#: OpenRouter's list of 400 models has half of it.
MAX_LIST_BYTES = 2 * 1024 * 1024
#: A million tokens, each in an event of 250 bytes.
MAX_ANSWER_BYTES = 256 * 1024 * 1024
#: What is read of a refusal.
MAX_REFUSAL_BYTES = 64 * 1024
#: As many as ENGINE_SLOTS may be; each is a socket, and the server's own queue is behind it.
MAX_CONNECTIONS = 256
#: For one of these to become free.
POOL_SECONDS = 10.0
#: A prompt of 1 MiB on a slow line.
WRITE_SECONDS = 30.0
#: Less than the 5 s after which uvicorn, and so vLLM, closes a connection that nobody uses.
KEEP_ALIVE_SECONDS = 4.0
#: For the bytes behind an answer's end; a connection that was read to its end can be used again.
DRAIN_SECONDS = 0.25

#: The first time and twice again; a server that needs longer to recover is left to the gateway, which has other workers.
ATTEMPTS = 3
#: Before the second attempt; doubled before the third, each times 0.5 to 1 so that callers do not come back all at once.
BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server may take."""

    connect_seconds: float = 10.0
    #: From the request to the first piece of the answer: a server may load a model for minutes before it.
    first_token_seconds: float = 300.0
    #: Between two pieces of the answer.
    idle_seconds: float = 60.0
    #: Before an attempt is repeated; tests make it short.
    backoff_seconds: float = BACKOFF_SECONDS


class Silence(Exception):
    """The server took too long; says at what. Caught by `translated`."""


class Answer:
    """The bytes of one answer, as they come, under the patience that is left."""

    def __init__(self, response: httpx.Response, seconds: float) -> None:
        # Without a size: httpx would hold back what comes until it has that much.
        self._pieces = response.aiter_raw()
        self._left = seconds
        self._bytes = 0

    def allow(self, seconds: float) -> None:
        """What comes next may take so long. Only an answer that gets on is given time again: comments are no progress."""
        self._left = seconds

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises Silence and BadStream. The time that the reader of a piece takes is not counted."""
        while (piece := await self._next()) is not None:
            self._bytes += len(piece)
            if self._bytes > MAX_ANSWER_BYTES:
                raise BadStream(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            yield piece

    async def drain(self) -> None:
        """Read what is left behind the end, if it is there at once."""
        self._left = DRAIN_SECONDS
        with suppress(Silence, httpx.HTTPError):
            while await self._next() is not None:
                pass

    async def _next(self) -> bytes | None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self._left)):
                piece = await anext(self._pieces, None)
        except TimeoutError as late:
            raise Silence("go on with its answer in time") from late
        self._left -= time.monotonic() - started
        if self._left <= 0 and piece is not None:
            # A server that is never silent and never gets on would not meet the timeout above.
            raise Silence("get on with its answer in time")
        return piece


class Server:
    """One server and its pool of connections."""

    def __init__(self, source: Source, http: httpx.AsyncClient, patience: Patience) -> None:
        self.source = source
        self.patience = patience
        self._http = http

    async def get(self, path: str) -> bytes:
        """A small JSON answer. Raises Unavailable, or what the refusal means."""
        async with translated(self.source), self._within(LIST_SECONDS):
            response = await self._http.send(self._http.build_request("GET", path), stream=True)
            try:
                await self._check(response)
                _check_type(response, "application/json")
                return await _read(response, MAX_LIST_BYTES)
            finally:
                await response.aclose()

    @asynccontextmanager
    async def post(self, path: str, body: bytes, kind: str) -> AsyncIterator[Answer]:
        """Ask for an answer of the media type ``kind``. Raises what the refusal means, or Unavailable; leaving it early, and
        being cancelled, closes the connection, which is how a server learns that nobody listens any more."""
        async with translated(self.source):
            started = time.monotonic()
            async with self._within(self.patience.first_token_seconds):
                response = await self._begin(path, body)
            try:
                _check_type(response, kind)
                yield Answer(response, self.patience.first_token_seconds - (time.monotonic() - started))
            finally:
                await response.aclose()

    async def ask(self, path: str, body: bytes, *, most: int) -> bytes:
        """A JSON answer of at most ``most`` bytes. Raises as ``post``; the whole of it may take as long as a pause in a stream."""
        read = bytearray()
        async with self.post(path, body, "application/json") as answer:
            answer.allow(self.patience.idle_seconds)
            async for piece in answer.pieces():
                read += piece
                if len(read) > most:
                    raise BadStream(f"a body of more than {most} bytes")
        return bytes(read)

    async def _begin(self, path: str, body: bytes) -> httpx.Response:
        """The head of a good answer. Repeats what failed before there was one, where that may help."""
        for attempt in range(ATTEMPTS):
            refusal = None
            try:
                request = self._http.build_request("POST", path, content=body, headers={"content-type": "application/json"})
                response = await self._http.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.RemoteProtocolError):
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                if response.is_success:
                    return response
                refusal = await self._refusal(response)
                if not refusal.again or attempt == ATTEMPTS - 1:
                    raise refusal.error
            log.info("backend_asked_again", server=self.source.name, attempt=attempt + 1)
            await asyncio.sleep(self._pause(attempt, refusal))
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int, refusal: Refusal | None) -> float:
        jitter = 0.5 + random.random() / 2  # noqa: S311  # spreads callers, hides nothing
        backoff = self.patience.backoff_seconds * (1 << attempt) * jitter
        asked = refusal.retry_after_seconds if refusal is not None else None
        return backoff if asked is None else max(backoff, asked)

    async def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise (await self._refusal(response)).error

    async def _refusal(self, response: httpx.Response) -> Refusal:
        try:
            body = b"" if response.headers.get("content-encoding") else await _read(response, MAX_REFUSAL_BYTES, cut=True)
        finally:
            await response.aclose()
        return refusals.judge(self.source, response.status_code, body, response.headers.get("retry-after"), now=time.time())

    @staticmethod
    @asynccontextmanager
    async def _within(seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as late:
            raise Silence(f"begin its answer within {seconds:g} s") from late


@asynccontextmanager
async def connected(source: Source, url: str, patience: Patience) -> AsyncIterator[Server]:
    """A pool of connections to ``url``, with the source's key in every request."""
    key = {} if source.key is None else {"authorization": f"Bearer {source.key.text}"}
    async with httpx.AsyncClient(
        base_url=url.rstrip("/"),
        # A compressed answer could be a thousand times its size; text in small pieces gains nothing by it.
        headers={"accept-encoding": "identity", **key},
        timeout=httpx.Timeout(None, connect=patience.connect_seconds, pool=POOL_SECONDS, write=WRITE_SECONDS),
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_SECONDS),
        # A proxy for the internet must not see what goes to a server in the house.
        trust_env=False,
        # The key and the prompt are for this address only.
        follow_redirects=False,
    ) as http:
        yield Server(source, http, patience)


@asynccontextmanager
async def translated(source: Source) -> AsyncIterator[None]:
    """Turn what httpx, msgspec and the parsers raise for a server that fails into Unavailable, and a full pool into Overloaded."""
    name = source.name
    try:
        yield
    except httpx.PoolTimeout as error:
        raise errors.Overloaded(f"{name} has {MAX_CONNECTIONS} requests of this worker open", retry_after_seconds=POOL_SECONDS) from error
    except httpx.HTTPError as error:
        reason = source.cleaned(str(error)) or type(error).__name__
        raise errors.Unavailable(
            f"{name} does not answer: {reason}", hint=f"is it running? see {source.url_setting}", retry_after_seconds=5.0
        ) from error
    except Silence as error:
        raise errors.Unavailable(f"{name} did not {error}", hint="look at the server's own log") from error
    except BadStream as error:
        raise errors.Unavailable(f"{name} broke its protocol: {error}") from error
    except UNREADABLE as error:
        reason = source.cleaned(str(error))
        raise errors.Unavailable(f"{name} broke its protocol: {reason}") from error


def _check_type(response: httpx.Response, kind: str) -> None:
    """Raises BadStream."""
    if encoding := response.headers.get("content-encoding", "").strip().lower().replace("identity", ""):
        raise BadStream(f"it is compressed ({encoding[:20]!r}), though that was not asked for")
    found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != kind:
        raise BadStream(f"content of type {found[:60]!r} in place of {kind!r}; is this the address of its API?")


async def _read(response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
    """The whole body, or its first ``most`` bytes. Raises BadStream for a longer one that must not be cut."""
    read = bytearray()
    async for piece in response.aiter_raw():
        read += piece
        if len(read) > most:
            if not cut:
                raise BadStream(f"a body of more than {most} bytes")
            break
    return bytes(read[:most])
