# Generated from async_wire.py by `python -m tools.docs`. Changes made here are lost.
"""Carry out the actions of a conversation over HTTP, and renew its session.  Makes no decisions."""

from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

import httpx

from aimesh import calls, conversations, sync_io
from aimesh.actions import Action, EmitPiece, OpenRequest, PauseAction, Read, Renew, Reply, WireLost
from aimesh.answers import AnswerPiece
from aimesh.conversations import CallTerms, ClientContext, Conversation
from aimesh.errors import AimeshError, NotAuthenticated
from aimesh.logins import RENEWAL_SECONDS, SessionLogin
from aimesh.sync_io import Connection, SingleFlight

T = TypeVar("T")


class Wire(Generic[T]):
    """One conversation and its connection. Leaving the block closes both, and cancels a request that would otherwise keep running."""

    def __init__(
        self, http: httpx.Client, base_url: str, conversation: Conversation[T], renew: Callable[[Renew], None] | None = None
    ) -> None:
        """``renew`` is needed for conversations with a login."""
        self._http = http
        self._base_url = base_url
        self._connection = Connection(http, base_url)
        self._conversation = conversation
        self._renew = renew

    def __enter__(self) -> "Wire[T]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def advance(self) -> AnswerPiece | None:
        """Return the next piece of the answer; None at the end. Raises AimeshError."""
        action = self._conversation.reply(None)
        while action is not None and not isinstance(action, EmitPiece):
            try:
                reply = self._perform(action)
            except (WireLost, AimeshError) as fault:
                action = self._conversation.fail(fault)
            else:
                action = self._conversation.reply(reply)
        return None if action is None else action.piece

    def close(self) -> None:
        """Safe to call twice. Takes up to a second if it must stop a running request at the gateway."""
        self._connection.close()
        cancellation = self._conversation.take_cancellation()
        if cancellation is not None and not self._http.is_closed:
            with Wire(self._http, self._base_url, cancellation, self._renew) as wire:
                wire.try_to_send()

    def try_to_send(self) -> None:
        try:
            self.advance()
        except AimeshError:
            return  # the gateway's own time limit ends the answer

    def _perform(self, action: Action) -> Reply:
        match action:
            case OpenRequest():
                return self._connection.open(action)
            case Read(seconds):
                return self._connection.read(seconds)
            case PauseAction(seconds):
                sync_io.pause(seconds)
                return None
            case Renew():
                assert self._renew is not None  # only a conversation with a login asks for it
                self._renew(action)
                return None
            case EmitPiece():
                return None


class Renewal:
    """Renews the access token, once for all calls that need it. ``close`` it."""

    def __init__(self, http: httpx.Client, context: ClientContext, login: SessionLogin) -> None:
        self._http = http
        self._context = context
        self._login = login
        self._single_flight = SingleFlight()

    def renew(self, wanted: Renew) -> None:
        """Return when there is another token. Raises AimeshError; SessionEnded if there will be none."""
        self._single_flight.run(lambda: self._login.is_spent(wanted.spent), self._request_token, wanted.seconds)

    def close(self) -> None:
        """Safe to call twice."""
        self._single_flight.close()

    def _request_token(self, seconds: float) -> None:
        call = calls.renew(self._login.session.session_token)
        renewing = conversations.whole(call, self._context, CallTerms(seconds=min(seconds, RENEWAL_SECONDS)))
        try:
            with Wire(self._http, self._context.base_url, renewing) as wire:
                wire.advance()
        except NotAuthenticated as refusal:
            raise self._login.end(refusal) from refusal
        self._login.session = renewing.result
