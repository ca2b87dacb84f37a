"""One HTTP connection of uvicorn's, with a bound on how long the head of a request may take.

uvicorn stops its own timer at the first byte: who then sends a byte now and then would hold a connection for ever.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

#: The head of a request is one packet; over a bad line, a few. Also for a connection on which nothing comes at all.
HEAD_SECONDS = 10.0


class HttpConnection(H11Protocol):
    """Closes a connection whose next request has begun and does not get to the end of its head in time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]  # it is None before the first request
            self._watch()
        else:
            self._rest()

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
