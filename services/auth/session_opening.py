"""Open sessions and complete logins. Every complete session begins here, so every login is in the audit log."""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec

from services.auth import audit_records, sealing
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.sessions.session_store import StoredLogin, StoredSession
from services.auth.store import StoredAccount
from shared import errors
from shared.api import auth
from shared.api.auth import SessionKind, Step
from shared.stores.transactions import Transaction

_ID_BYTES = 8
_MAX = 200


@dataclass(frozen=True, slots=True)
class KnownBrowsers:
    """Marks browsers that have logged in to an account, so a stranger's failed attempts don't count against them (OWASP: device cookies).

    A mark is an id and its MAC, stored only in the browser. It is bound to the account and its password, so a mark obtained with an old
    password is worthless. It grants no access, only separate attempts.
    """

    #: The first one signs; the others are derived from a former DATA_KEY.
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, data_key: str, data_key_old: str | None) -> "KnownBrowsers":
        """Build it from the settings. Raises BadSettings."""
        return cls(tuple(sealing.derive(key, "known-browser") for key in sealing.read_keys(data_key, data_key_old)))

    def read(self, mark: str, account: StoredAccount | None) -> str:
        """Return the id of a browser that has logged in to this account before; empty for any other."""
        browser, _, mac = mark.partition(".")
        if account is None or not browser or len(mark) > _MAX or not mark.isascii():
            return ""
        is_known = any(hmac.compare_digest(mac, _mac(key, browser, account)) for key in self.keys)
        return browser if is_known else ""

    def mark(self, browser: str, account: StoredAccount) -> str:
        return f"{browser}.{_mac(self.keys[0], browser, account)}"


def _new_browser_id() -> str:
    return secrets.token_hex(_ID_BYTES)


def _mac(key: bytes, browser: str, account: StoredAccount) -> str:
    return hmac.digest(key, f"{account.user.id}/{browser}/{account.password_version}".encode(), hashlib.sha256).hex()


@dataclass(frozen=True, slots=True)
class CompleteLogin:
    session: StoredSession
    #: No password was entered before in this browser, as far as its mark tells; False for programs.
    is_new_browser: bool
    #: It is known from now on.
    is_marked: bool


#: Runs in the transaction of a complete login, for example to cancel an account deletion.
AtLogin = Callable[[Transaction, CompleteLogin], Awaitable[None]]


class SessionOpening(AuthHandlers):
    """Safe for concurrent calls. Every method may raise Unavailable."""

    def __init__(self, parts: Dependencies, *, at_login: tuple[AtLogin, ...] = ()) -> None:
        super().__init__(parts)
        self._at_login = at_login
        self.browsers = KnownBrowsers.of(parts.settings.data_key, parts.settings.data_key_old)

    async def open(
        self, user: auth.User, login: StoredLogin, *, proven: StoredAccount | None = None, link: str | None = None
    ) -> auth.LoginSession:
        """``proven``: the account whose password, or its version, was compared. Raises Unavailable if it has changed since. ``link``: the
        login link to use up. Raises NotAuthenticated if it has ended since."""
        # Nobody entered a password with a link.
        marked = proven if link is None and login.step is Step.DONE and login.kind is SessionKind.BROWSER else None
        is_new = login.kind is SessionKind.BROWSER and not login.browser
        if marked is not None:
            login = replace(login, browser=login.browser or _new_browser_id())
        password_hash = None if proven is None else proven.password_hash
        async with self._store.transaction() as transaction:
            # A concurrent password change or closing of the account waits for us, and then ends this session too.
            if await transaction.row("hold_account", user.id, password_hash) is None:
                raise errors.Unavailable("the account was just changed", hint="log in again", retry_after_seconds=0)
            opened = await self._sessions.open(login) if link is None else await self._sessions.open_by_link(link, login)
            if opened is None:
                raise self._identities.link_over()
            if login.step is Step.DONE:
                await self._finish(transaction, CompleteLogin(opened.session, is_new, marked is not None))
        return self._marked(self._identities.answer(user, opened), login.browser, marked)

    async def complete(self, session: StoredSession) -> auth.LoginSession:
        """Continue after the missing step was taken. Raises NotAuthenticated if the session has ended or the account is closed."""
        account = await self._identities.active_account(await self._store.find_account_of(session.user_id))
        user, marked = account.user, account if session.kind is SessionKind.BROWSER else None
        browser = session.browser or _new_browser_id() if marked is not None else ""
        async with self._store.transaction() as transaction:
            opened = await self._sessions.complete(session, browser)
            if opened is None:
                raise self._identities.session_over()
            is_new = marked is not None and not session.browser
            await self._finish(transaction, CompleteLogin(opened.session, is_new, marked is not None))
        return self._marked(self._identities.answer(user, opened), browser, marked)

    def _marked(self, answer: auth.LoginSession, browser: str, account: StoredAccount | None) -> auth.LoginSession:
        return answer if account is None else msgspec.structs.replace(answer, browser=self.browsers.mark(browser, account))

    async def _finish(self, transaction: Transaction, login: CompleteLogin) -> None:
        session, client = login.session, login.session.client
        act = audit_records.done_by(
            "session.open", session.user_id, target=session.id, address=client.address, kind=session.kind, agent=client.agent
        )
        await self._trail.add(transaction, act)
        for also in self._at_login:
            await also(transaction, login)
