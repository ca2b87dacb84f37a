"""HTTP connections, pauses and shared work for asyncio.  `sync_io` has the same for threads; the other sync modules are generated."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx

from aimesh.actions import AnswerHead, OpenRequest, WireLost
from aimesh.errors import AimeshError, DeadlineExceeded

#: A reachable host answers within two round trips, even if the first packet is lost.
CONNECT_SECONDS = 5.0
#: What httpx raises while it sends and reads.
HTTP_ERRORS = (httpx.RequestError, httpx.StreamError)
#: Errors before anything was sent.
_BEFORE_SENDING = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.ProxyError,
)

pause = asyncio.sleep


class AsyncConnection:
    """One HTTP request at a time. ``open`` and ``read`` raise WireLost."""

    def __init__(self, http: httpx.AsyncClient, base_url: str) -> None:
        self._http = http
        self._base_url = base_url
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def open(self, request: OpenRequest) -> AnswerHead:
        """Close the previous request and send this one."""
        await self.close()
        try:
            async with asyncio.timeout(request.seconds):
                self._response = await self._http.send(
                    build_request(self._http, self._base_url, request), stream=True, follow_redirects=False
                )
        except (*HTTP_ERRORS, TimeoutError) as error:
            raise wire_lost(error) from error
        except AttributeError as error:
            # anyio asks for the address of a connection that was reset as soon as it was open; uvloop has no socket for it any more.
            if error.name != "getpeername":
                raise
            raise WireLost("the connection was reset as soon as it was open", may_have_arrived=False) from error
        self._pieces = self._response.aiter_raw()
        return read_head(self._response)

    async def read(self, seconds: float) -> bytes:
        """Return the next piece of the body; empty at its end."""
        assert self._pieces is not None  # `open` comes before `read`
        try:
            async with asyncio.timeout(seconds):
                return await anext(self._pieces, b"")
        except (*HTTP_ERRORS, TimeoutError) as error:
            raise wire_lost(error) from error

    async def close(self) -> None:
        response, self._response, self._pieces = self._response, None, None
        if response is not None:
            await response.aclose()


class AsyncSingleFlight:
    """Run one piece of work for all tasks that need it at the same time. ``close`` it."""

    def __init__(self) -> None:
        self._running: asyncio.Task[None] | None = None

    async def run(self, is_needed: Callable[[], bool], work: Callable[[float], Coroutine[Any, Any, None]], seconds: float) -> None:
        """Raises what ``work`` raises, or DeadlineExceeded. ``work`` is given the seconds that it may take."""
        if not is_needed():
            return
        if self._running is None or self._running.done():
            # The next call may need the result even if this one runs out of time.
            self._running = asyncio.create_task(work(math.inf))
        try:
            async with asyncio.timeout(seconds):
                # A canceled caller must not cancel the work: the token that was sent is already spent.
                await asyncio.shield(self._running)
        except TimeoutError as error:
            raise DeadlineExceeded("the session was not renewed in time", hint="set a longer timeout") from error

    async def close(self) -> None:
        """Safe to call twice."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, AimeshError):
                await running


def build_request(http: httpx.Client | httpx.AsyncClient, base_url: str, request: OpenRequest) -> httpx.Request:
    return http.build_request(
        request.verb,
        base_url + request.path,
        headers=dict(request.headers),
        content=request.body,
        timeout=httpx.Timeout(request.silence_seconds, connect=min(CONNECT_SECONDS, request.seconds)),
    )


def read_head(response: httpx.Response) -> AnswerHead:
    return AnswerHead(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def wire_lost(error: Exception) -> WireLost:
    return WireLost(_reason(error), may_have_arrived=not isinstance(error, _BEFORE_SENDING))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the call's time limit was reached"
    if isinstance(error, httpx.TimeoutException):
        return "it took too long to connect" if isinstance(error, _BEFORE_SENDING) else "the server sent nothing for too long"
    return f"{type(error).__name__}: {error}"[:500]
