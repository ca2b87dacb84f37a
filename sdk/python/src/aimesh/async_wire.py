"""Carry out the actions of a conversation over HTTP, and renew its session.  Makes no decisions."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

import httpx

from aimesh import async_io, calls, conversations
from aimesh.actions import Action, EmitPiece, OpenRequest, PauseAction, Read, Renew, Reply, WireLost
from aimesh.answers import AnswerPiece
from aimesh.async_io import AsyncConnection, AsyncSingleFlight
from aimesh.conversations import CallTerms, ClientContext, Conversation
from aimesh.errors import AimeshError, NotAuthenticated
from aimesh.logins import RENEWAL_SECONDS, SessionLogin

T = TypeVar("T")


class AsyncWire(Generic[T]):
    """One conversation and its connection. Leaving the block closes both, and cancels a request that would otherwise keep running."""

    def __init__(
        self, http: httpx.AsyncClient, base_url: str, conversation: Conversation[T], renew: Callable[[Renew], Awaitable[None]] | None = None
    ) -> None:
        """``renew`` is needed for conversations with a login."""
        self._http = http
        self._base_url = base_url
        self._connection = AsyncConnection(http, base_url)
        self._conversation = conversation
        self._renew = renew

    async def __aenter__(self) -> "AsyncWire[T]":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def advance(self) -> AnswerPiece | None:
        """Return the next piece of the answer; None at the end. Raises AimeshError."""
        action = self._conversation.reply(None)
        while action is not None and not isinstance(action, EmitPiece):
            try:
                reply = await self._perform(action)
            except (WireLost, AimeshError) as fault:
                action = self._conversation.fail(fault)
            else:
                action = self._conversation.reply(reply)
        return None if action is None else action.piece

    async def close(self) -> None:
        """Safe to call twice. Takes up to a second if it must stop a running request at the gateway."""
        await self._connection.close()
        cancellation = self._conversation.take_cancellation()
        if cancellation is not None and not self._http.is_closed:
            async with AsyncWire(self._http, self._base_url, cancellation, self._renew) as wire:
                await wire.try_to_send()

    async def try_to_send(self) -> None:
        try:
            await self.advance()
        except AimeshError:
            return  # the gateway's own time limit ends the answer

    async def _perform(self, action: Action) -> Reply:
        match action:
            case OpenRequest():
                return await self._connection.open(action)
            case Read(seconds):
                return await self._connection.read(seconds)
            case PauseAction(seconds):
                await async_io.pause(seconds)
                return None
            case Renew():
                assert self._renew is not None  # only a conversation with a login asks for it
                await self._renew(action)
                return None
            case EmitPiece():
                return None


class AsyncRenewal:
    """Renews the access token, once for all calls that need it. ``close`` it."""

    def __init__(self, http: httpx.AsyncClient, context: ClientContext, login: SessionLogin) -> None:
        self._http = http
        self._context = context
        self._login = login
        self._single_flight = AsyncSingleFlight()

    async def renew(self, wanted: Renew) -> None:
        """Return when there is another token. Raises AimeshError; SessionEnded if there will be none."""
        await self._single_flight.run(lambda: self._login.is_spent(wanted.spent), self._request_token, wanted.seconds)

    async def close(self) -> None:
        """Safe to call twice."""
        await self._single_flight.close()

    async def _request_token(self, seconds: float) -> None:
        call = calls.renew(self._login.session.session_token)
        renewing = conversations.whole(call, self._context, CallTerms(seconds=min(seconds, RENEWAL_SECONDS)))
        try:
            async with AsyncWire(self._http, self._context.base_url, renewing) as wire:
                await wire.advance()
        except NotAuthenticated as refusal:
            raise self._login.end(refusal) from refusal
        self._login.session = renewing.result
