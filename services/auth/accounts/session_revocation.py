"""What changes an account so much that its sessions end with it: both happen, or neither."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from services.auth.store import AccountTables
from shared.types import UserId

if TYPE_CHECKING:  # only stores talk to PostgreSQL; this hands a transaction on
    from shared.stores.database import Transaction


class SessionsToEnd(Protocol):
    async def end_all(self, user_id: UserId, but: str | None = None) -> int:
        """Ends every session of this user and says how many it were, but for the one of this id. Safe to call again. Raises Unavailable."""
        ...


class SessionRevocation:
    def __init__(self, store: AccountTables, sessions: SessionsToEnd) -> None:
        self._store = store
        self._sessions = sessions

    @contextlib.asynccontextmanager
    async def transaction(self, user_id: UserId, *, but: str | None = None) -> AsyncIterator["Transaction"]:
        """Ended before the commit, so that nothing is changed while Valkey is away; and again after it, because until then who knew
        the old password could log in."""
        async with self._store.transaction() as transaction:
            yield transaction
            await self._sessions.end_all(user_id, but)
            await transaction.run("tell_of_user", user_id)
        await self._sessions.end_all(user_id, but)
