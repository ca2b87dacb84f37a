"""Gets a new access token for all threads that want one.  `async_renewal` is the same for asyncio."""

import threading

import httpx

from aimesh import calls, conversations
from aimesh.actions import Renew
from aimesh.conversations import CallTerms, ProcessContext
from aimesh.errors import DeadlineExceeded, NotAuthenticated
from aimesh.logins import RENEWAL_SECONDS, SessionLogin
from aimesh.wire import Wire


class Renewal:
    """Safe for several threads."""

    def __init__(self, http: httpx.Client, around: ProcessContext, login: SessionLogin) -> None:
        self._http = http
        self._around = around
        self._login = login
        self._turn = threading.Lock()

    def renew(self, wanted: Renew) -> None:
        """Returns when there is another token, by whomever. Raises AimeshError; SessionEnded where there will be none."""
        if not self._turn.acquire(timeout=wanted.seconds):
            raise DeadlineExceeded("another call still renews the session", hint="give a longer timeout")
        try:
            if self._login.is_spent(wanted.spent):
                self._ask(min(wanted.seconds, RENEWAL_SECONDS))
        finally:
            self._turn.release()

    def _ask(self, seconds: float) -> None:
        asking = conversations.whole(calls.renew(self._login.session.session_token), self._around, CallTerms(seconds=seconds))
        try:
            with Wire(self._http, self._around.settings.base_url, asking) as wire:
                wire.advance()
        except NotAuthenticated as refusal:
            raise self._login.end(refusal) from refusal
        self._login.session = asking.result
