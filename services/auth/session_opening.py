"""Opens sessions and finishes logins. Every session that lacks no step begins here, so that every login is in the audit log."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from services.auth import audit_records
from services.auth.dependencies import Dependencies
from services.auth.sessions import known_browsers
from services.auth.sessions.known_browsers import KnownBrowsers
from services.auth.sessions.session_store import StoredLogin, StoredSession
from services.auth.store import StoredAccount
from shared import errors
from shared.api import auth
from shared.api.auth import SessionKind, Step
from shared.types import UserId

if TYPE_CHECKING:
    from shared.stores.database import Transaction

#: What else happens in the transaction of a login that lacks no step, like calling a deletion off.
AtLogin = Callable[["Transaction", UserId], Awaitable[None]]


class SessionOpening:
    """Safe for any number of calls at once. Every method may raise Unavailable."""

    def __init__(self, parts: Dependencies, *, at_login: tuple[AtLogin, ...] = ()) -> None:
        self._store = parts.store
        self._sessions = parts.sessions
        self._identities = parts.identities
        self._trail = parts.trail
        self._at_login = at_login
        self.browsers = KnownBrowsers.of(parts.settings.data_key, parts.settings.data_key_old)

    async def open(self, user: auth.User, login: StoredLogin, *, proven: StoredAccount | None = None) -> auth.LoginSession:
        """``proven``: the account as its password was compared. Raises Unavailable where it has another password by now."""
        marked = proven if login.step is Step.DONE and login.kind is SessionKind.BROWSER else None
        if marked is not None:
            login = replace(login, browser=login.browser or known_browsers.new_id())
        password_hash = None if proven is None else proven.password_hash
        async with self._store.transaction() as transaction:
            # Who changes the password or closes the account waits for us, and then ends this session with the others.
            if await transaction.row("hold_account", user.id, password_hash) is None:
                raise errors.Unavailable("the account was changed at this moment", hint="log in again", retry_after_seconds=0)
            opened = await self._sessions.open(login)
            if login.step is Step.DONE:
                await self._finish(transaction, opened.session)
        return self._marked(self._identities.answer(user, opened), login.browser, marked)

    async def complete(self, session: StoredSession) -> auth.LoginSession:
        """The step that the login lacked was taken just now. Raises NotAuthenticated where the session or its account has ended."""
        user = await self._identities.active_user(await self._store.find_user(session.user_id))
        marked = await self._store.find_account(user.username) if session.kind is SessionKind.BROWSER else None
        browser = session.browser or known_browsers.new_id() if marked is not None else ""
        async with self._store.transaction() as transaction:
            opened = await self._sessions.complete(session, browser)
            if opened is None:
                raise self._identities.session_over()
            await self._finish(transaction, opened.session)
        return self._marked(self._identities.answer(user, opened), browser, marked)

    def _marked(self, answer: auth.LoginSession, browser: str, account: StoredAccount | None) -> auth.LoginSession:
        return answer if account is None else msgspec.structs.replace(answer, browser=self.browsers.mark(browser, account))

    async def _finish(self, transaction: "Transaction", session: StoredSession) -> None:
        client = session.client
        act = audit_records.done_by(
            "session.open", session.user_id, target=session.id, address=client.address, kind=session.kind, agent=client.agent
        )
        await self._trail.add(transaction, act)
        for also in self._at_login:
            await also(transaction, session.user_id)
