"""Change an account and end its sessions together, or do neither."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from services.auth.store import AccountTables
from shared.types import UserId

if TYPE_CHECKING:  # only stores talk to PostgreSQL; this hands a transaction on
    from shared.stores.database import Transaction


class SessionsToEnd(Protocol):
    async def end_all(self, user_id: UserId, but: str | None = None) -> int:
        """End all sessions of this user, except the one with the id ``but``; return how many ended. Idempotent. Raises Unavailable."""
        ...


class SessionRevocation:
    def __init__(self, store: AccountTables, sessions: SessionsToEnd) -> None:
        self._store = store
        self._sessions = sessions

    @contextlib.asynccontextmanager
    async def transaction(self, user_id: UserId, *, but: str | None = None) -> AsyncIterator["Transaction"]:
        """Sessions end before the commit, so nothing changes while Valkey is down; and again after it: until then the old one worked."""
        async with self._store.transaction() as transaction:
            yield transaction
            await self._sessions.end_all(user_id, but)
            await transaction.run("tell_of_user", user_id)
        await self._sessions.end_all(user_id, but)
