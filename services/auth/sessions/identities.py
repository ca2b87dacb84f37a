"""Find the principal of a credential, which is an API key or an access token. Each refusal is counted by its reason.

While PostgreSQL is down, its last answers about administrators are used: they must be able to see what is wrong.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar, cast

import msgspec

from services.auth import api_keys, roles
from services.auth.sessions.session_store import OpenedSession, SessionStore, StoredSession
from services.auth.sessions.tokens import LIFETIME_SECONDS, AccessTokens
from services.auth.store import AccountTables, OwnedKey, StoredAccount, budget_of
from shared import access_table, errors
from shared.api import auth
from shared.api.auth import Budget, ClientFacts, IdentifyOwner, IdentifyPerson, Principal, Step, User
from shared.rpc import RpcCall
from shared.telemetry import logs
from shared.telemetry.instruments import AuthFailure
from shared.types import Credential, KeyId, Permission, PlanName, Role, TenantId, UserId, UserRole

#: Older cached answers are not used: another replica may still reach PostgreSQL and revoke there, without this one noticing.
MAX_AGE_SECONDS = 3600.0
#: How long to wait for PostgreSQL if there is a cached answer; auth's callers wait 2 s in all.
WAIT_SECONDS = 0.4
MAX_ANSWERS = 1_000
_WRITE_EVERY_SECONDS = 5
#: Keys per interval; further ones are recorded at their next use.
_MAX_NOTED = 10_000

#: The services that clients connect to. Only they know a client's address; what a client says about its own address proves nothing.
CLIENT_FACING = frozenset({Role.WEB, Role.GATEWAY})

T = TypeVar("T")
CountRefusal = Callable[[AuthFailure], None]

#: The client address at the login behind the running call's credential; empty for a key. For refusals, whose calls carry no client address.
logged_in_from: ContextVar[str] = ContextVar("logged_in_from", default="")

_KEY_HINT = "create a new one on the dashboard or with `aicli keys create`"
_LOGIN_HINT = "log in again"
CODE_HINT = "wait for the app's next code, and check the phone's clock; a recovery code works once"
#: Tests name these refusals; NotAuthenticated and NotAllowed have many.
SESSION_OVER = "the session has ended"
WRONG_PASSWORD = "the user name or the password is wrong"  # noqa: S105 - a sentence
WRONG_CODE = "the code is wrong, or was already used"
NEEDS_LOGIN = "this requires a login; an API key is not enough"
_CLOSED_HINT = "ask an administrator of this mesh to reopen it"

_log = logs.get(part="last_known")


@dataclass(frozen=True, slots=True)
class TeamTerms:
    """What an organization, or a user with their own requests, may use."""

    tier: PlanName
    #: Set if it shares its founder's limits.
    founder_id: UserId | None = None
    budget: Budget | None = None


class Identities:
    """Raises NotAuthenticated for an invalid credential, and Unavailable if that cannot be found out."""

    def __init__(
        self,
        store: AccountTables,
        sessions: SessionStore,
        tokens: AccessTokens,
        last_used: "KeyLastUsed",
        *,
        pepper: str,
        count_refusal: CountRefusal,
        admin_mfa: bool,
    ) -> None:
        """``admin_mfa``: an administrator without a second factor can only set one up."""
        self._store = store
        self._sessions = sessions
        self._tokens = tokens
        self._last_used = last_used
        self._pepper = pepper
        self._admin_mfa = admin_mfa
        self.principal_cache = PrincipalCache()
        self.count_refusal = count_refusal

    async def of(self, credential: Credential | None) -> Principal:
        logged_in_from.set("")
        if credential is None:
            raise self._refused("missing", "this call needs a credential", "send an API key or an access token with it")
        if credential.startswith("aip_"):
            return await self.of_key(credential)
        return await self._of_token(credential)

    async def of_key(self, key: Credential) -> Principal:
        try:
            api_keys.check(key)
        except errors.NotAuthenticated:
            self.count_refusal("malformed")
            raise
        return await self.of_key_hash(api_keys.digest(key, self._pepper))

    async def of_key_hash(self, digest: str) -> Principal:
        owned = await self.principal_cache.ask(digest, lambda: self._store.find_owner_of_key(digest), _administrator_of_key)
        principal = self._holder_of(owned)
        if principal.key_id is not None:
            self._last_used.note(principal.key_id)
        return principal

    async def of_owner(self, owner: IdentifyOwner) -> Principal:
        """Return who ordered work that runs later, with the rights of now."""
        if owner.key_id is not None:
            key = await self._of_key_id(owner.key_id)
            return key if key.user_id == owner.user_id else await self._named(key, await self._store.find_user(owner.user_id))
        user_id = owner.user_id
        found = await self.principal_cache.ask(user_id, lambda: self._store.find_user(user_id), _administrator)
        return await self._person(await self.active_user(found), owner.team_id)

    async def of_person(self, asked: IdentifyPerson) -> Principal:
        """Return whom a key names; the key's own principal if nobody whom it may name has verified the address. Raises PersonRefused."""
        key = await self._of_key_id(asked.key_id)
        user = await self._store.find_person(asked.address, key.team_id)
        if user is None:
            return key
        if not user.is_active:
            raise errors.PersonRefused("the account of the person whom this request names is closed", hint=_CLOSED_HINT)
        return await self._named(key, user)

    async def _named(self, key: Principal, user: User | None) -> Principal:
        user = await self.active_user(user)
        if Permission.NAME_USERS not in (key.scopes or ()):
            raise self._refused("revoked_key", "this API key may not name people any more", _KEY_HINT)
        return roles.named(key, await self._person(user, key.team_id))

    async def _of_key_id(self, key_id: KeyId) -> Principal:
        question = partial(self._store.find_owner_of_key, None, key_id)
        return self._holder_of(await self.principal_cache.ask(key_id, question, _administrator_of_key))

    def _holder_of(self, owned: OwnedKey | None) -> Principal:
        if owned is None:
            raise self._refused("unknown_key", "this API key does not exist", _KEY_HINT)
        if not owned.key_is_active:
            raise self._refused("revoked_key", "this API key was revoked", _KEY_HINT)
        if not owned.user_is_active:
            raise self.closed()
        now = datetime.now(UTC)
        if owned.expires_at is not None and owned.expires_at <= now:
            expired = api_keys.ago((now - owned.expires_at).total_seconds())
            raise self._refused("expired_key", f"this API key expired {expired}", _KEY_HINT)
        if owned.replaced_at is not None and owned.replaced_at <= now:
            ended = api_keys.ago((now - owned.replaced_at).total_seconds())
            raise self._refused("rotated_key", f"this API key was rotated, and its old secret ended {ended}", "use its new secret")
        return owned.principal

    def mark(self, key: Credential) -> api_keys.Mark:
        return api_keys.mark(key, self._pepper)

    def closed(self) -> errors.NotAuthenticated:
        """Only for a caller who has proven to own the account."""
        return self._refused("closed_account", "this account is closed", _CLOSED_HINT)

    def wrong_password(self) -> errors.NotAuthenticated:
        """The same answer as for an unknown name."""
        return self._refused("wrong_password", WRONG_PASSWORD, "check both, or register")

    def wrong_code(self) -> errors.NotAuthenticated:
        """Only for a caller who knows the password."""
        return self._refused("wrong_code", WRONG_CODE, CODE_HINT)

    def session_over(self) -> errors.NotAuthenticated:
        return self._refused("session_over", SESSION_OVER, _LOGIN_HINT)

    def session_reused(self) -> errors.NotAuthenticated:
        """Two callers have the same token, and nobody can tell which of them is the thief."""
        return self._refused(
            "session_reused",
            "this session token was already used, so the session was ended",
            f"{_LOGIN_HINT}; if that wasn't you, change your password",
        )

    def link_over(self) -> errors.NotAuthenticated:
        return self._refused("link_over", "this login link was used, has expired or was revoked", "create a new one with `aicli dashboard`")

    async def active_user(self, session_user: User | None) -> User:
        """Raises NotAuthenticated if the account was closed or deleted since the session was opened."""
        if session_user is None:
            raise self.session_over()
        if not session_user.is_active:
            raise self.closed()
        return session_user

    async def active_account(self, account: StoredAccount | None) -> StoredAccount:
        """Raises NotAuthenticated like ``active_user``."""
        await self.active_user(None if account is None else account.user)
        assert account is not None
        return account

    async def bearer(self, session: StoredSession) -> User:
        """Return a session's user. Raises NotAuthenticated if the account is gone or closed."""
        user_id = session.user_id
        return await self.active_user(await self.principal_cache.ask(user_id, lambda: self._store.find_user(user_id), _administrator))

    async def session_of(self, credential: Credential | None) -> StoredSession:
        """Return the session of an access token. Raises NotAllowed for a key, which has none."""
        if credential is None or credential.startswith("aip_"):
            raise errors.NotAllowed(NEEDS_LOGIN, hint="log in with the password, then do it again")
        return await self._session(credential)

    def answer(self, user: User, opened: OpenedSession) -> auth.LoginSession:
        """Return the session's token, and an access token for ten minutes."""
        session = opened.session
        step = self._step(user, session)
        # A login that lacks a step can only take that step.
        scopes = access_table.permissions_of(user.role, None) if step is Step.DONE else ()
        access_token = self._tokens.issue(user.id, session.id, time.time(), tenant_id=session.tenant_id, scopes=scopes)
        return opened.answer(user, access_token, LIFETIME_SECONDS, step)

    async def find_team_terms(self, user_id: UserId, team_id: TenantId) -> TeamTerms | None:
        """Return None if the user is not a member of the organization."""
        async with self._store.transaction() as transaction:
            found = await transaction.row("find_membership", user_id, team_id)
        return None if found is None else TeamTerms(found["subscription_tier"], found["founder_id"], budget_of(found))

    async def _of_token(self, token: Credential) -> Principal:
        session = await self._session(token)
        logged_in_from.set(session.client.address)
        user = await self.bearer(session)
        person = await self._person(user, session.team_id)
        return msgspec.structs.replace(person, step=self._step(user, session), confirmed_at=session.confirmed_at)

    async def _person(self, user: User, team_id: TenantId | None) -> Principal:
        terms = TeamTerms(user.tier, budget=user.budget)
        if team_id is not None:
            found = await self.find_team_terms(user.id, team_id)
            # A user who was removed from an organization must not silently continue, and pay, as themselves.
            if found is None:
                raise self.session_over()
            terms = found
        return Principal(
            user_id=user.id,
            username=user.username,
            role=user.role,
            tier=terms.tier,
            team_id=team_id,
            founder_id=terms.founder_id,
            budget=terms.budget,
            has_free_tokens=team_id is not None or user.has_free_tokens,
        )

    async def _session(self, token: Credential) -> StoredSession:
        try:
            claims = await self._tokens.read(token, time.time())
        except errors.NotAuthenticated:
            self.count_refusal("bad_token")
            raise
        session = await self._sessions.find(claims.sid)
        if session is None or session.user_id != claims.sub or claims.tid != session.tenant_id:
            raise self.session_over()
        return session

    def _step(self, user: User, session: StoredSession) -> Step:
        """Checked at each call: a user may become an administrator during a session."""
        if session.step is Step.DONE and not session.has_factor and user.role is UserRole.ADMIN and self._admin_mfa:
            return Step.SET_UP_MFA
        return session.step

    def _refused(self, reason: AuthFailure, message: str, hint: str) -> errors.NotAuthenticated:
        self.count_refusal(reason)
        return errors.NotAuthenticated(message, hint=hint)


def _administrator(user: User | None) -> UserId | None:
    return user.id if user is not None and user.is_active and user.role is UserRole.ADMIN else None


def _administrator_of_key(owned: OwnedKey | None) -> UserId | None:
    if owned is None or not (owned.key_is_active and owned.user_is_active) or owned.principal.role is not UserRole.ADMIN:
        return None
    return owned.principal.user_id


def client_address(client: ClientFacts, call: RpcCall) -> str | None:
    """Return the client's address as web or the gateway saw it (empty if unknown), or None if another service calls."""
    return client.address if call.caller_role in CLIENT_FACING else None


@dataclass(frozen=True, slots=True)
class _CachedPrincipal:
    user_id: UserId
    value: object
    at: float


class PrincipalCache:
    """PostgreSQL's answers about administrators. Keys are digests of credentials and ids; no credential is stored.

    While PostgreSQL is down for all replicas nobody can be revoked or closed, because that is stored there. Earlier changes were announced
    and removed by ``forget``. So a cached answer is still right, and it is used only if there is no newer one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: OrderedDict[Hashable, _CachedPrincipal] = OrderedDict()
        #: Grows with every ``forget``: an answer that was requested before one is not cached after it.
        self._changes = 0
        self._is_healthy = True

    async def ask(self, key: Hashable, question: Callable[[], Awaitable[T]], administrator: Callable[[T], UserId | None]) -> T:
        """Return the answer of PostgreSQL, or else the cached one. ``administrator`` returns whose answer it is, or None if it must not be
        cached.

        Raises Unavailable if there is neither.
        """
        last = self._answers.get(key)
        usable = last is not None and self._clock() - last.at < MAX_AGE_SECONDS
        changes_before = self._changes
        try:
            async with asyncio.timeout(WAIT_SECONDS if usable else None):
                value = await question()
        except (errors.Unavailable, TimeoutError) as error:
            if last is None or not usable or changes_before != self._changes:
                raise
            if self._is_healthy:
                _log.warning("PostgreSQL does not answer: using its last answers for administrators", reason=str(error))
            self._is_healthy = False
            return cast("T", last.value)
        self._is_healthy = True
        self._answers.pop(key, None)
        user_id = administrator(value)
        if user_id is not None and changes_before == self._changes:
            self._answers[key] = _CachedPrincipal(user_id, value, self._clock())
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return value

    def forget(self, user_id: UserId | None) -> None:
        """Drop what is known about this user, or about everyone for None."""
        self._changes += 1
        if user_id is None:
            self._answers.clear()
        for key in [key for key, answer in self._answers.items() if answer.user_id == user_id]:
            del self._answers[key]


class KeyLastUsed:
    """Records when each key was last used, to the minute. A crash loses a few seconds.

    ``note`` never blocks; ``run`` is the task that writes.
    """

    def __init__(self, store: AccountTables) -> None:
        self._store = store
        self._noted: set[KeyId] = set()

    def note(self, key_id: KeyId) -> None:
        if len(self._noted) < _MAX_NOTED:
            self._noted.add(key_id)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write now. What cannot be written is dropped."""
        noted, self._noted = self._noted, set()
        if noted:
            with contextlib.suppress(errors.Unavailable):
                await self._store.touch_keys(sorted(noted))
