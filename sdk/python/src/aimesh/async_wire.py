"""Performs what a conversation asks for, on a connection of asyncio.  Decides nothing.

`wire` is the same without asyncio.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

import httpx

from aimesh import wire_faults
from aimesh.actions import Action, AnswerHead, OpenRequest, PauseAction, Read, Renew, Reply, Say, WireLost
from aimesh.conversations import Conversation
from aimesh.errors import AimeshError
from aimesh.wire_faults import CONNECT_SECONDS, FAULTS

T = TypeVar("T")


class AsyncWire(Generic[T]):
    """One conversation and its connection. Leaving the block closes both, and says so to the other side where that matters."""

    def __init__(
        self, http: httpx.AsyncClient, base_url: str, conversation: Conversation[T], renew: Callable[[Renew], Awaitable[None]] | None = None
    ) -> None:
        """``renew`` for conversations with a login."""
        self._http = http
        self._base_url = base_url
        self._conversation = conversation
        self._renew = renew
        self._response: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> "AsyncWire[T]":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def advance(self) -> str | None:
        """To the next piece of the text; None at the end. Raises AimeshError."""
        action = self._conversation.reply(None)
        while action is not None and not isinstance(action, Say):
            try:
                reply = await self._perform(action)
            except (WireLost, AimeshError) as fault:
                action = self._conversation.fail(fault)
            else:
                action = self._conversation.reply(reply)
        return None if action is None else action.text

    async def close(self) -> None:
        """Safe to call twice. Takes up to a second where the other side has to be told that nobody waits any more."""
        await self._hang_up()
        farewell = self._conversation.take_farewell()
        if farewell is not None and not self._http.is_closed:
            async with AsyncWire(self._http, self._base_url, farewell, self._renew) as wire:
                await wire.try_to_say()

    async def try_to_say(self) -> None:
        try:
            await self.advance()
        except AimeshError:
            return  # a gateway that cannot be reached ends the answer by its own time limit

    async def _perform(self, action: Action) -> Reply:
        match action:
            case OpenRequest():
                return await self._open(action)
            case Read(seconds):
                return await self._read(seconds)
            case PauseAction(seconds):
                await asyncio.sleep(seconds)
                return None
            case Renew():
                assert self._renew is not None  # only a conversation with a login asks for it
                await self._renew(action)
                return None
            case Say():
                return None

    async def _open(self, action: OpenRequest) -> AnswerHead:
        await self._hang_up()
        try:
            request = self._http.build_request(
                action.verb,
                self._base_url + action.path,
                headers=dict(action.headers),
                content=action.body,
                timeout=httpx.Timeout(action.silence_seconds, connect=min(CONNECT_SECONDS, action.seconds)),
            )
            async with asyncio.timeout(action.seconds):
                self._response = await self._http.send(request, stream=True, follow_redirects=False)
        except FAULTS as error:
            raise wire_faults.lost(error) from error
        except TimeoutError as error:
            raise wire_faults.too_slow() from error
        self._pieces = self._response.aiter_raw()
        return wire_faults.head(self._response)

    async def _read(self, seconds: float) -> bytes:
        assert self._pieces is not None  # Open comes before Read
        try:
            async with asyncio.timeout(seconds):
                return await anext(self._pieces, b"")
        except FAULTS as error:
            raise wire_faults.lost(error) from error
        except TimeoutError as error:
            raise wire_faults.too_slow() from error

    async def _hang_up(self) -> None:
        response, self._response, self._pieces = self._response, None, None
        if response is not None:
            await response.aclose()
