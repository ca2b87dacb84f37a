"""Find the principal of a credential, which is an API key or an access token. Each refusal is counted by its reason."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

from services.auth import api_keys
from services.auth.sessions.key_last_used import KeyLastUsed
from services.auth.sessions.principal_cache import PrincipalCache
from services.auth.sessions.session_store import OpenedSession, SessionStore, StoredSession
from services.auth.sessions.tokens import LIFETIME_SECONDS, AccessTokens
from services.auth.store import AccountTables, OwnedKey
from shared import access_table, errors
from shared.api import auth
from shared.api.auth import Principal, Step, User
from shared.telemetry.instruments import AuthFailure
from shared.types import Credential, TenantId, Tier, UserId, UserRole

CountRefusal = Callable[[AuthFailure], None]

#: The client address at the login behind the running call's credential; empty for a key. For refusals, whose calls carry no client address.
logged_in_from: ContextVar[str] = ContextVar("logged_in_from", default="")

_KEY_HINT = "create a new one on the dashboard or with `aicli keys create`"
_LOGIN_HINT = "log in again"
CODE_HINT = "wait for the app's next code, and check the phone's clock; a recovery code works once"
_CLOSED_HINT = "ask an administrator of this mesh to reopen it"


@dataclass(frozen=True, slots=True)
class TeamTerms:
    """What an organization may use."""

    tier: Tier
    #: Set if it shares its founder's limits.
    founder_id: UserId | None = None


class Identities:
    """Raises NotAuthenticated for an invalid credential, and Unavailable if that cannot be found out."""

    def __init__(
        self,
        store: AccountTables,
        sessions: SessionStore,
        tokens: AccessTokens,
        last_used: KeyLastUsed,
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
        digest = self.digest(key)
        owned = await self.principal_cache.ask(digest, lambda: self._store.find_owner_of_key(digest), _administrator_of_key)
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
        if owned.principal.key_id is not None:
            self._last_used.note(owned.principal.key_id)
        return owned.principal

    def digest(self, key: Credential) -> str:
        """Return what is stored instead of the key."""
        return api_keys.digest(key, self._pepper)

    def closed(self) -> errors.NotAuthenticated:
        """Only for a caller who has proven to own the account."""
        return self._refused("closed_account", "this account is closed", _CLOSED_HINT)

    def wrong_password(self) -> errors.NotAuthenticated:
        """The same answer as for an unknown name."""
        return self._refused("wrong_password", "the user name or the password is wrong", "check both, or register")

    def wrong_code(self) -> errors.NotAuthenticated:
        """Only for a caller who knows the password."""
        return self._refused("wrong_code", "the code is wrong, or was already used", CODE_HINT)

    def session_over(self) -> errors.NotAuthenticated:
        return self._refused("session_over", "the session has ended", _LOGIN_HINT)

    def session_reused(self) -> errors.NotAuthenticated:
        """Two callers have the same token, and nobody can tell which of them is the thief."""
        return self._refused(
            "session_reused",
            "this session token was already used, so the session was ended",
            f"{_LOGIN_HINT}; if that wasn't you, change your password",
        )

    def link_over(self) -> errors.NotAuthenticated:
        return self._refused("link_over", "this login link was used or has expired", "create a new one with `aicli dashboard`")

    async def active_user(self, session_user: User | None) -> User:
        """Raises NotAuthenticated if the account was closed or deleted since the session was opened."""
        if session_user is None:
            raise self.session_over()
        if not session_user.is_active:
            raise self.closed()
        return session_user

    async def bearer(self, session: StoredSession) -> User:
        """Return a session's user. Raises NotAuthenticated if the account is gone or closed."""
        user_id = session.user_id
        return await self.active_user(await self.principal_cache.ask(user_id, lambda: self._store.find_user(user_id), _administrator))

    async def session_of(self, credential: Credential | None) -> StoredSession:
        """Return the session of an access token. Raises NotAllowed for a key, which has none."""
        if credential is None or credential.startswith("aip_"):
            raise errors.NotAllowed("this requires a login; an API key is not enough", hint="log in with the password, then do it again")
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
        return None if found is None else TeamTerms(Tier(found["subscription_tier"]), found["founder_id"])

    async def _of_token(self, token: Credential) -> Principal:
        session = await self._session(token)
        logged_in_from.set(session.client.address)
        user = await self.bearer(session)
        terms = TeamTerms(user.tier)
        if session.team_id is not None:
            found = await self.find_team_terms(user.id, session.team_id)
            # A user who was removed from an organization must not silently continue, and pay, as themselves.
            if found is None:
                raise self.session_over()
            terms = found
        return Principal(
            user_id=user.id,
            username=user.username,
            role=user.role,
            tier=terms.tier,
            team_id=session.team_id,
            founder_id=terms.founder_id,
            step=self._step(user, session),
            confirmed_at=session.confirmed_at,
        )

    async def _session(self, token: Credential) -> StoredSession:
        try:
            claims = await self._tokens.read(token, time.time())
        except errors.NotAuthenticated:
            self.count_refusal("bad_token")
            raise
        session = await self._sessions.find(claims.sid)
        if session is None or session.user_id != claims.sub or claims.tid not in (None, session.tenant_id):
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
