"""Whose a credential is: an API key or an access token, in, the principal, out. Every refusal is counted by its reason."""

import time
from collections.abc import Callable

from services.auth import api_keys
from services.auth.last_used import LastUsed
from services.auth.sessions import Sessions
from services.auth.store import Store
from services.auth.tokens import AccessTokens
from shared import errors
from shared.api.auth import Principal, User
from shared.types import Credential

#: Takes the reason of a refusal, one of a short list: it becomes a metric's label.
CountRefusal = Callable[[str], None]

_KEY_HINT = "make a new one on the dashboard or with `aicli keys create`"
_LOGIN_HINT = "log in again"
_CLOSED_HINT = "ask an administrator of this mesh to open it again"


class Identities:
    """Raises NotAuthenticated for a credential that is no good, and Unavailable when that cannot be found out."""

    def __init__(
        self, store: Store, sessions: Sessions, tokens: AccessTokens, last_used: LastUsed, *, pepper: str, count_refusal: CountRefusal
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._tokens = tokens
        self._last_used = last_used
        self._pepper = pepper
        self.count_refusal = count_refusal

    async def of(self, credential: Credential | None) -> Principal:
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
        owned = await self._store.find_owner_of_key(self.digest(key))
        if owned is None:
            raise self._refused("unknown_key", "no such API key is known here", _KEY_HINT)
        if not owned.key_is_active:
            raise self._refused("revoked_key", "this API key was revoked", _KEY_HINT)
        if not owned.user_is_active:
            raise self.closed()
        if owned.principal.key_id is not None:
            self._last_used.note(owned.principal.key_id)
        return owned.principal

    def digest(self, key: Credential) -> str:
        """What is stored in the key's place."""
        return api_keys.digest(key, self._pepper)

    def closed(self) -> errors.NotAuthenticated:
        """For whoever has shown that the account is theirs."""
        return self._refused("closed_account", "this account is closed", _CLOSED_HINT)

    def wrong_password(self) -> errors.NotAuthenticated:
        """The same for a name that nobody has."""
        return self._refused("wrong_password", "the user name or the password is wrong", "check both, or open an account")

    def session_over(self) -> errors.NotAuthenticated:
        return self._refused("session_over", "the session has ended", _LOGIN_HINT)

    def link_over(self) -> errors.NotAuthenticated:
        return self._refused("link_over", "this login link was used or is too old", "`aicli dashboard` makes a new one")

    async def active_user(self, session_user: User | None) -> User:
        """A session's user, who may have been closed or deleted since it was opened."""
        if session_user is None:
            raise self.session_over()
        if not session_user.is_active:
            raise self.closed()
        return session_user

    async def _of_token(self, token: Credential) -> Principal:
        try:
            claims = self._tokens.read(token, time.time())
        except errors.NotAuthenticated:
            self.count_refusal("bad_token")
            raise
        session = await self._sessions.find(claims.sid)
        if session is None or session.user_id != claims.sub:
            raise self.session_over()
        user = await self.active_user(await self._store.find_user(claims.sub))
        return Principal(user_id=user.id, username=user.username, role=user.role, tier=user.tier)

    def _refused(self, reason: str, message: str, hint: str) -> errors.NotAuthenticated:
        self.count_refusal(reason)
        return errors.NotAuthenticated(message, hint=hint)
