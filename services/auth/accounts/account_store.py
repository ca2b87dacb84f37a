"""auth's tables preferences and password_resets, and users' changes of their own account. Every method may raise Unavailable."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from services.auth import store
from services.auth.sessions.session_store import SessionStore
from services.auth.store import AccountTables, AuthTables
from shared import errors
from shared.api.accounts import Preferences
from shared.stores import database
from shared.types import ModelName, UserId


@dataclass(frozen=True, slots=True)
class OwnRow:
    """The part of an account that only its owner sees."""

    preferences: Preferences
    has_password: bool
    erase_at: datetime | None
    #: None until the user has shown that they read mail at their address.
    verified_at: datetime | None


class AccountStore(AuthTables):
    async def get(self, user_id: UserId) -> OwnRow:
        """Raises NotFound."""
        async with self._db.bound(user_id) as transaction:
            row = await transaction.row("find_own_account", user_id)
        if row is None:
            raise _deleted()
        return OwnRow(_preferences(row), row["has_password"], row["erase_at"], row["verified_at"])

    def renaming(self) -> contextlib.AbstractAsyncContextManager[database.Transaction]:
        """Raises AlreadyExists if a name or an address written in it is taken."""
        return store.naming_user(self._db, "choose another")

    async def change_profile(self, transaction: database.Transaction, user_id: UserId, username: str | None, email: str | None) -> None:
        """``None`` leaves a value unchanged. Raises NotFound."""
        if not await transaction.run("change_profile", user_id, username, email):
            raise _deleted()

    async def set_preferences(self, user_id: UserId, chosen: Preferences) -> None:
        async with self._db.bound(user_id) as transaction:
            await transaction.run("set_preferences", user_id, chosen.default_model, chosen.theme, chosen.notify_by_mail)

    async def find_password_hash(self, user_id: UserId) -> str | None:
        found: str | None = await self._db.value("find_password_hash", user_id)
        return found

    async def set_password(self, transaction: database.Transaction, user_id: UserId, password_hash: str) -> None:
        """Also invalidates a pending reset. Raises NotFound if the account was closed meanwhile."""
        if not await transaction.run("set_password_hash", user_id, password_hash):
            raise _deleted()
        await self.drop_reset(transaction, user_id)

    async def put_reset(self, transaction: database.Transaction, user_id: UserId, token_hash: str, seconds: float) -> None:
        await transaction.run("put_password_reset", user_id, token_hash, seconds)

    async def find_reset(self, token_hash: str) -> UserId | None:
        found = await self._db.value("find_password_reset", token_hash)
        return None if found is None else UserId(found)

    async def use_reset(self, transaction: database.Transaction, token_hash: str) -> UserId | None:
        """Only one of several concurrent callers succeeds."""
        found = await transaction.value("use_password_reset", token_hash)
        return None if found is None else UserId(found)

    async def drop_reset(self, transaction: database.Transaction, user_id: UserId) -> None:
        await transaction.run("drop_password_reset", user_id)

    async def drop_password_resets(self) -> None:
        """Drop those of all users."""
        await self._db.run("drop_password_resets")


def _preferences(row: database.DatabaseRow) -> Preferences:
    model = row["default_model"]
    return Preferences(None if model is None else ModelName(model), row["theme"], row["notify_by_mail"])


def _deleted() -> errors.NotFound:
    return errors.NotFound("this account was closed or deleted a moment ago", hint="ask an administrator of this mesh")


class SessionRevocation:
    """Changes an account and ends its sessions together, or does neither."""

    def __init__(self, store: AccountTables, sessions: SessionStore) -> None:
        self._store = store
        self._sessions = sessions

    @contextlib.asynccontextmanager
    async def transaction(self, user_id: UserId, *, but: str | None = None) -> AsyncIterator[database.Transaction]:
        """Sessions end before the commit, so nothing changes while Valkey is down; and again after it: until then the old one worked."""
        async with self._store.transaction() as transaction:
            yield transaction
            await self._sessions.end_all(user_id, but)
            await transaction.run("tell_of_user", user_id)
        await self._sessions.end_all(user_id, but)
