"""HTTP connections, pauses and shared work for threads.  `async_io` has the same for asyncio."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx

from aimesh.actions import AnswerHead, OpenRequest
from aimesh.async_io import HTTP_ERRORS, build_request, read_head, wire_lost
from aimesh.errors import DeadlineExceeded

#: A new timer costs a thread, so the old one stays if the deadline moved by less than this.
_SLACK_SECONDS = 0.05

pause = time.sleep


class Connection:
    """One HTTP request at a time. ``open`` and ``read`` raise WireLost."""

    def __init__(self, http: httpx.Client, base_url: str) -> None:
        self._http = http
        self._base_url = base_url
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._is_stream = False
        self._timer: threading.Timer | None = None
        self._timer_ends = 0.0

    def open(self, request: OpenRequest) -> AnswerHead:
        """Close the previous request and send this one."""
        self.close()
        try:
            self._response = self._http.send(build_request(self._http, self._base_url, request), stream=True, follow_redirects=False)
        except HTTP_ERRORS as error:
            raise wire_lost(error) from error
        self._pieces = self._response.iter_raw()
        self._is_stream = request.is_stream
        return read_head(self._response)

    def read(self, seconds: float) -> bytes:
        """Return the next piece of the body; empty at its end."""
        if self._is_stream:
            self._set_timer(seconds)
        try:
            return next(self._pieces, b"")
        except HTTP_ERRORS as error:
            raise wire_lost(error) from error

    def close(self) -> None:
        self._cancel_timer()
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def _set_timer(self, seconds: float) -> None:
        """Limit the whole body: the timeouts of httpx limit each silence, and a stream has many."""
        until = time.monotonic() + seconds
        if self._timer is not None and until > self._timer_ends - _SLACK_SECONDS:
            return
        self._cancel_timer()
        self._timer_ends = until
        self._timer = threading.Timer(seconds, _shut_down, (self._response,))
        self._timer.daemon = True
        self._timer.start()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class SingleFlight:
    """Run one piece of work for all threads that need it at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def run(self, is_needed: Callable[[], bool], work: Callable[[float], None], seconds: float) -> None:
        """Raises what ``work`` raises, or DeadlineExceeded. ``work`` is given the seconds that it may take."""
        if not self._lock.acquire(timeout=seconds):
            raise DeadlineExceeded("another call is still renewing the session", hint="set a longer timeout")
        try:
            if is_needed():
                work(seconds)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Do nothing: the work runs in its caller's thread."""


def _shut_down(response: httpx.Response | None) -> None:
    """End the connection, so that a thread that is reading from it stops."""
    stream = None if response is None else response.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):  # it is closed already
            # The plain socket's method: TLS would send a closing message first and wait for the answer.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
