"""Performs what a conversation asks for, on a connection, and waits for it.  Decides nothing.

`async_wire` is the same for asyncio.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

import httpx

from aimesh import wire_faults
from aimesh.actions import Action, AnswerHead, OpenRequest, PauseAction, Read, Renew, Reply, Say, WireLost
from aimesh.conversations import Conversation
from aimesh.errors import AimeshError
from aimesh.wire_faults import CONNECT_SECONDS, FAULTS

T = TypeVar("T")

#: A new timer costs a thread; for less it is not worth it.
_SLACK_SECONDS = 0.05


class Wire(Generic[T]):
    """One conversation and its connection. Leaving the block closes both, and says so to the other side where that matters."""

    def __init__(
        self, http: httpx.Client, base_url: str, conversation: Conversation[T], renew: Callable[[Renew], None] | None = None
    ) -> None:
        """``renew`` for conversations with a login."""
        self._http = http
        self._base_url = base_url
        self._conversation = conversation
        self._renew = renew
        self._response: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._is_slow = False
        self._watch: threading.Timer | None = None
        self._watched_until = 0.0

    def __enter__(self) -> "Wire[T]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def advance(self) -> str | None:
        """To the next piece of the text; None at the end. Raises AimeshError."""
        action = self._conversation.reply(None)
        while action is not None and not isinstance(action, Say):
            try:
                reply = self._perform(action)
            except (WireLost, AimeshError) as fault:
                action = self._conversation.fail(fault)
            else:
                action = self._conversation.reply(reply)
        return None if action is None else action.text

    def close(self) -> None:
        """Safe to call twice. Takes up to a second where the other side has to be told that nobody waits any more."""
        self._hang_up()
        farewell = self._conversation.take_farewell()
        if farewell is not None and not self._http.is_closed:
            with Wire(self._http, self._base_url, farewell, self._renew) as wire:
                wire.try_to_say()

    def try_to_say(self) -> None:
        try:
            self.advance()
        except AimeshError:
            return  # a gateway that cannot be reached ends the answer by its own time limit

    def _perform(self, action: Action) -> Reply:
        match action:
            case OpenRequest():
                return self._open(action)
            case Read(seconds):
                return self._read(seconds)
            case PauseAction(seconds):
                time.sleep(seconds)
                return None
            case Renew():
                assert self._renew is not None  # only a conversation with a login asks for it
                self._renew(action)
                return None
            case Say():
                return None

    def _open(self, action: OpenRequest) -> AnswerHead:
        self._hang_up()
        try:
            request = self._http.build_request(
                action.verb,
                self._base_url + action.path,
                headers=dict(action.headers),
                content=action.body,
                timeout=httpx.Timeout(action.silence_seconds, connect=min(CONNECT_SECONDS, action.seconds)),
            )
            self._response = self._http.send(request, stream=True, follow_redirects=False)
        except FAULTS as error:
            raise wire_faults.lost(error) from error
        self._pieces = self._response.iter_raw()
        self._is_slow = action.slowly
        return wire_faults.head(self._response)

    def _read(self, seconds: float) -> bytes:
        if self._is_slow:
            self._watch_over(seconds)
        try:
            return next(self._pieces, b"")
        except FAULTS as error:
            raise wire_faults.lost(error) from error

    def _watch_over(self, seconds: float) -> None:
        """httpx bounds each silence, and a body with pauses has many: the time for all of it has to end one from outside."""
        until = time.monotonic() + seconds
        if self._watch is not None and until > self._watched_until - _SLACK_SECONDS:
            return
        self._end_watch()
        self._watched_until = until
        self._watch = threading.Timer(seconds, _cut, (self._response,))
        self._watch.daemon = True
        self._watch.start()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    def _hang_up(self) -> None:
        self._end_watch()
        response, self._response = self._response, None
        if response is not None:
            response.close()


def _cut(response: httpx.Response | None) -> None:
    """Whoever reads it at this moment is told that it has ended."""
    stream = None if response is None else response.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):  # it has ended by itself
            # The plain one: TLS would first say goodbye, and wait to be answered.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
