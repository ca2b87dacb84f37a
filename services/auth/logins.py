"""RPC methods to log in, keep a session and log out."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from services.auth import audit_records, roles
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.mfa.factors import Factors
from services.auth.organizations import membership_rules
from services.auth.session_opening import SessionOpening
from services.auth.sessions import failed_logins, session_store
from services.auth.sessions.failed_logins import Guess
from services.auth.sessions.identities import CLIENT_FACING, CODE_HINT, WRONG_CODE, client_address
from services.auth.store import StoredAccount
from shared import errors
from shared.api import accounts, auth
from shared.api.audit import AuditedAct
from shared.api.auth import SessionKind, Step
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import Role, UserId, UserRole

#: A query that makes the gateways forget a user's tokens, which they otherwise cache for a minute.
_INVALIDATE_USER = "tell_of_user"

_log = logs.get(part="auth")


class LoginRpc(AuthHandlers):
    def __init__(self, parts: Dependencies, factors: Factors, opening: SessionOpening) -> None:
        super().__init__(parts)
        self._factors = factors
        self._opening = opening

    @serves(auth.login_user)
    async def login_user(self, request: auth.LoginUser, call: RpcCall) -> auth.LoginSession:
        typed = request.credentials
        if (typed.username is None) == (typed.email is None):
            raise errors.BadRequest.of("credentials", "give either username or email, and password")
        if request.kind is SessionKind.BROWSER and call.caller_role is not Role.WEB:
            raise errors.NotAllowed("only the web pages can open a browser session", hint="leave kind out")
        # Attempts are counted by account, and by the client's address or the calling node.
        seen = client_address(request.client, call)
        address = str(call.caller.node) if seen is None else seen
        account, browser = await self._prove(typed, address, request.browser)
        login = session_store.StoredLogin(user_id=account.user.id, kind=request.kind, client=_client(request.client, call), browser=browser)
        login = await self._with_step(account.user, login, typed.code, address)
        # Before the session is opened: the browser's mark depends on the hash.
        account = await self._with_current_hash(account, typed.password)
        return await self._opening.open(account.user, login, proven=account)

    @serves(auth.confirm_login)
    async def confirm_login(self, request: auth.ConfirmLogin, call: RpcCall) -> auth.LoginSession:
        session = await self._identities.session_of(call.credential)
        if session.step is not Step.ENTER_CODE:
            raise errors.BadRequest("this login needs no code", hint="use it without confirmLogin")
        await self._check_code(call, request.code, session, "session.open")
        return await self._opening.complete(session)

    @serves(auth.confirm_again)
    async def confirm_again(self, request: auth.ConfirmAgain, call: RpcCall) -> Nothing:
        session, caller = await self._identities.session_of(call.credential), call.principal
        has_factor = (await self._factors.find(caller.user_id)).is_enabled
        if not has_factor:
            await self._check_password(call, request.password, session)
        elif request.code is None:
            raise errors.SecondFactorNeeded("the password is not enough here", hint="enter a code from your authenticator app")
        else:
            await self._check_code(call, request.code, session, "session.confirm")
        async with self._store.transaction() as transaction:
            if not await self._sessions.confirm(session, has_factor=has_factor):
                raise self._identities.session_over()
            await self._trail.add(transaction, audit_records.done("session.confirm", caller, target=session.id))
            await transaction.run(_INVALIDATE_USER, caller.user_id)
        return Nothing()

    async def begin(self, user: auth.User, login: session_store.StoredLogin) -> auth.LoginSession:
        """Open a session for a user that an OpenID provider authenticated, with the step that the login still lacks."""
        return await self._opening.open(user, await self._with_step(user, login, None, ""))

    @serves(auth.refresh_session)
    async def refresh_session(self, request: auth.RefreshSession, call: RpcCall) -> auth.LoginSession:
        # Checked before it is used: a token that is used up for an error would be lost.
        session = await self._sessions.find_by_token(request.session_token)
        if session is None:
            raise self._identities.session_over()
        user = await self._bearer(session)
        found = await self._sessions.refresh(request.session_token)
        if isinstance(found, session_store.ClosedSession):
            await self._record_reuse(found)
            raise self._identities.session_reused()
        if found is session_store.SessionOver.OTHER_KIND:
            raise errors.BadRequest("this is the token of a browser session", hint="use resumeSession, which keeps it the same")
        return self._continue(user, found)

    @serves(auth.resume_session)
    async def resume_session(self, request: auth.ResumeSession, call: RpcCall) -> auth.LoginSession:
        found = await self._sessions.resume(request.session_token)
        if found is session_store.SessionOver.OTHER_KIND:
            raise errors.BadRequest("this is the token of a program's session", hint="use refreshSession, which returns a new one")
        if found is session_store.SessionOver.ENDED:
            raise self._identities.session_over()
        answer = self._continue(await self._bearer(found.session), found)
        theme, team_name = await self._find_appearance(answer)
        return msgspec.structs.replace(answer, theme=theme, team_name=team_name)

    async def _find_appearance(self, session: auth.LoginSession) -> tuple[str | None, str | None]:
        user, team_id = session.user, session.team_id
        cache = self._identities.principal_cache

        def administrator(_appearance: object) -> UserId | None:
            return user.id if user.role is UserRole.ADMIN else None

        return await cache.ask((user.id, team_id), lambda: self._store.find_appearance(user.id, team_id), administrator)

    @serves(accounts.switch_organisation)
    async def switch_organisation(self, request: accounts.SwitchTeam, call: RpcCall) -> auth.LoginSession:
        session, caller = await self._identities.session_of(call.credential), call.principal
        if request.team_id is not None and await self._identities.find_team_terms(caller.user_id, request.team_id) is None:
            raise membership_rules.unknown()
        user = await self._identities.active_user(await self._store.find_user(caller.user_id))
        async with self._store.transaction() as transaction:
            opened = await self._sessions.switch_team(session, request.team_id)
            if opened is None:
                raise self._identities.session_over()
            await self._trail.add(transaction, audit_records.done("session.switch", caller, target=request.team_id or caller.user_id))
            await transaction.run(_INVALIDATE_USER, caller.user_id)
        return self._identities.answer(user, opened)

    @serves(accounts.list_sessions)
    async def list_sessions(self, request: accounts.ListSessions, call: RpcCall) -> accounts.OpenSessions:
        this = await self._find_own_id(call)
        sessions = await self._sessions.list_of(call.principal.user_id)
        return accounts.OpenSessions(tuple(session.shown(this) for session in sessions))

    @serves(accounts.end_session)
    async def end_session(self, request: accounts.EndSession, call: RpcCall) -> Nothing:
        caller = call.principal
        this = await self._find_own_id(call)
        async with self._store.transaction() as transaction:
            if request.id is None:
                ended = await self._sessions.end_all(caller.user_id, but=this)
                act = audit_records.done("session.end", caller, target="all others", ended=str(ended))
            else:
                if not await self._sessions.end(caller.user_id, request.id):
                    raise errors.NotFound("you have no open session with this id", hint="listSessions shows them")
                act = audit_records.done("session.end", caller, target=request.id)
            await self._trail.add(transaction, act)
            await transaction.run(_INVALIDATE_USER, caller.user_id)
        return Nothing()

    @serves(auth.logout_user)
    async def logout_user(self, request: auth.LogoutUser, call: RpcCall) -> Nothing:
        async with self._store.transaction() as transaction:
            closed = await self._sessions.end_by_token(request.session_token)
            if closed is not None:
                await self._trail.add(transaction, audit_records.done_by("session.end", closed.user_id, target=closed.id))
                await transaction.run(_INVALIDATE_USER, closed.user_id)
        return Nothing()

    @serves(auth.create_login_link)
    async def create_login_link(self, request: auth.CreateLoginLink, call: RpcCall) -> auth.LoginLink:
        caller = call.principal
        roles.check_may_open_session(caller)
        account = await self._identities.active_account(await self._store.find_account_of(caller.user_id))
        session_id = await self._find_own_id(call)
        key = call.credential if session_id is None else None
        link = session_store.StoredLoginLink(
            user_id=caller.user_id,
            password_version=account.password_version,
            session_id=session_id,
            key_hash=None if key is None else self._identities.mark(key).key_hash,
        )
        return auth.LoginLink(await self._sessions.create_link(link), session_store.LINK_SECONDS)

    @serves(auth.redeem_login_link)
    async def redeem_login_link(self, request: auth.RedeemLoginLink, call: RpcCall) -> auth.LoginSession:
        return await self.open_by_link(request.token, SessionKind.BROWSER, request.client, call, request.browser)

    async def open_by_link(
        self, token: str, kind: SessionKind, client: auth.ClientFacts, call: RpcCall, browser: str = ""
    ) -> auth.LoginSession:
        link = await self._sessions.find_link(token)
        if link is None or link.kind is not kind:
            raise self._identities.link_over()
        account = await self._identities.active_account(await self._store.find_account_of(link.user_id))
        if account.password_version != link.password_version:
            raise self._identities.link_over()
        user, maker = account.user, await self._find_maker(link)
        login = session_store.StoredLogin(
            user_id=user.id,
            kind=kind,
            client=_client(client, call),
            has_factor=maker is not None and maker.has_factor,
            # A link proves neither password nor code, so sensitive actions require one first. To approve a device is one itself.
            confirmed_at=0.0 if kind is SessionKind.BROWSER else None,
            team_id=None if maker is None or kind is SessionKind.PROGRAM else maker.team_id,
            browser=self._opening.browsers.read(browser, account),
        )
        login = await self._with_step(user, login, None, "")
        if login.step is Step.SET_UP_MFA:
            # It can do nothing but set one up, which has to be fresh.
            login = replace(login, confirmed_at=None)
        return await self._opening.open(user, login, proven=account, link=token)

    async def _find_maker(self, link: session_store.StoredLoginLink) -> session_store.StoredSession | None:
        """Return the session that created the link, or None for a key. Raises NotAuthenticated if it has ended."""
        if link.key_hash is not None:
            roles.check_may_open_session(await self._identities.of_key_hash(link.key_hash))
            return None
        session = None if link.session_id is None else await self._sessions.find(link.session_id)
        if session is None or session.user_id != link.user_id:
            raise self._identities.link_over()
        return session

    async def _prove(self, typed: auth.Credentials, address: str, mark: str) -> tuple[StoredAccount, str]:
        """Check the password; return the account, and the id of its browser if it has logged in before. Unknown names take the same work
        and get the same answer."""
        name = typed.username or typed.email or ""
        account = await self._store.find_account(name)
        counted_as = failed_logins.account_of(account.user.id if account else None, name)
        browser = self._opening.browsers.read(mark, account)
        with self._counting():
            guess = await self._guesses.charge(counted_as, address, browser)
        if not await self._compare(guess, typed.password, account.password_hash if account else None) or account is None:
            refused = audit_records.refused("session.open", None, "wrong password")
            self._note(refused, account.user.id if account else None, address)
            raise self._identities.wrong_password()
        await self._guesses.reset(counted_as, address, browser)
        if not account.user.is_active:
            raise self._identities.closed()
        return account, browser

    async def _with_step(
        self, user: auth.User, login: session_store.StoredLogin, code: str | None, address: str
    ) -> session_store.StoredLogin:
        """Look for a second factor only once the password was right, so nobody else learns whether there is one."""
        if login.has_factor:
            return login
        if (await self._factors.find(user.id)).is_enabled:
            if code is None:
                return replace(login, step=Step.ENTER_CODE)
            with self._counting():
                right = await self._factors.take(user.id, code, address, login.browser)
            if not right:
                self._note(audit_records.refused("session.open", None, "wrong code"), user.id, address)
                raise self._identities.wrong_code()
            return replace(login, has_factor=True)
        if user.role is UserRole.ADMIN and self._settings.admin_mfa:
            return replace(login, step=Step.SET_UP_MFA)
        return login

    async def _check_code(self, call: RpcCall, code: str, session: session_store.StoredSession, action: str) -> None:
        caller, address = call.principal, session.client.address
        with self._counting():
            right = await self._factors.take(caller.user_id, code, address or str(call.caller.node), session.browser)
        if not right:
            self._note(audit_records.refused(action, caller, "wrong code"), caller.user_id, address)
            raise errors.NotAllowed(WRONG_CODE, hint=CODE_HINT)

    async def _check_password(self, call: RpcCall, password: str | None, session: session_store.StoredSession) -> None:
        caller, seen = call.principal, session.client.address
        address = seen or str(call.caller.node)
        account = await self._store.find_account(caller.username)
        if password is None or account is None or not account.password_hash:
            raise errors.BadRequest.of("password", "required to confirm this", hint="if the account has none, log in again instead")
        with self._counting():
            guess = await self._guesses.charge(str(caller.user_id), address, session.browser)
        if not await self._compare(guess, password, account.password_hash):
            self._note(audit_records.refused("session.confirm", caller, "wrong password"), caller.user_id, seen)
            raise errors.NotAllowed("the password is wrong", hint="type it again")
        await self._guesses.reset(str(caller.user_id), address, session.browser)

    async def _compare(self, guess: Guess, password: str, password_hash: str | None) -> bool:
        """If the server is too busy to compare, the attempt is not counted."""
        try:
            return await self._passwords.verify(password, password_hash)
        except errors.Overloaded:
            # Without Valkey the attempt stays counted; the answer is the same.
            with contextlib.suppress(errors.Unavailable):
                await self._guesses.refund(guess)
            raise

    async def _bearer(self, session: session_store.StoredSession) -> auth.User:
        user = await self._identities.bearer(session)
        if session.team_id is not None and await self._identities.find_team_terms(user.id, session.team_id) is None:
            raise self._identities.session_over()
        return user

    def _continue(self, user: auth.User, found: session_store.OpenedSession | session_store.SessionOver) -> auth.LoginSession:
        if isinstance(found, session_store.SessionOver):
            raise self._identities.session_over()
        return self._identities.answer(user, found)

    async def _find_own_id(self, call: RpcCall) -> str | None:
        return None if call.principal.key_id is not None else (await self._identities.session_of(call.credential)).id

    async def _with_current_hash(self, account: StoredAccount, password: str) -> StoredAccount:
        if account.password_hash and self._passwords.is_outdated(account.password_hash):
            # If this fails, the next login will do it.
            with contextlib.suppress(errors.Overloaded, errors.Unavailable):
                current = await self._passwords.hash(password)
                if await self._store.replace_password_hash(account, current):
                    return replace(account, password_hash=current)
                # Another login at the same moment did it first. But if the password was changed, this login must fail.
                found = await self._store.find_account(account.user.username)
                if found is not None and await self._passwords.verify(password, found.password_hash):
                    return found
        return account

    async def _record_reuse(self, closed: session_store.ClosedSession) -> None:
        _log.warning("a used session token was presented again; its session was ended", session=closed.id, user_id=closed.user_id)
        async with self._store.transaction() as transaction:
            await self._trail.add(transaction, audit_records.done_by("session.reuse", closed.user_id, target=closed.id))
            await transaction.run(_INVALIDATE_USER, closed.user_id)

    def _note(self, act: AuditedAct, user_id: UserId | None, address: str) -> None:
        """Record a refusal: the account concerned and the address. Nobody has proven who it was."""
        self._trail.note(msgspec.structs.replace(act, target="" if user_id is None else str(user_id), address=address))

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except (errors.Limited, errors.NotAllowed):
            self._identities.count_refusal("too_many_logins")
            raise


def _client(client: auth.ClientFacts, call: RpcCall) -> auth.ClientFacts:
    return client if call.caller_role in CLIENT_FACING else auth.ClientFacts(agent=client.agent)
