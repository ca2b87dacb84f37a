"""Gets a new access token for all tasks that want one.  `renewal` is the same without asyncio."""

import asyncio
import contextlib

import httpx

from aimesh import calls, conversations
from aimesh.actions import Renew
from aimesh.async_wire import AsyncWire
from aimesh.conversations import CallTerms, ProcessContext
from aimesh.errors import AimeshError, DeadlineExceeded, NotAuthenticated
from aimesh.logins import RENEWAL_SECONDS, SessionLogin


class AsyncRenewal:
    """For one event loop. ``close`` it."""

    def __init__(self, http: httpx.AsyncClient, around: ProcessContext, login: SessionLogin) -> None:
        self._http = http
        self._around = around
        self._login = login
        self._asking: asyncio.Task[None] | None = None

    async def renew(self, wanted: Renew) -> None:
        """Returns when there is another token, by whomever. Raises AimeshError; SessionEnded where there will be none."""
        if not self._login.is_spent(wanted.spent):
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        try:
            async with asyncio.timeout(wanted.seconds):
                # Who leaves must not take the answer along: the token that was sent for it is spent.
                await asyncio.shield(self._asking)
        except TimeoutError as error:
            raise DeadlineExceeded("the session was not renewed in time", hint="give a longer timeout") from error

    async def close(self) -> None:
        """Safe to call twice."""
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError, AimeshError):
                await asking

    async def _ask(self) -> None:
        asked = conversations.whole(calls.renew(self._login.session.session_token), self._around, CallTerms(seconds=RENEWAL_SECONDS))
        try:
            async with AsyncWire(self._http, self._around.settings.base_url, asked) as wire:
                await wire.advance()
        except NotAuthenticated as refusal:
            raise self._login.end(refusal) from refusal
        self._login.session = asked.result
