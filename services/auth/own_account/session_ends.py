"""What changes an account so much that its sessions end with it: both happen, or neither."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from services.auth.store import Store
from shared.types import UserId

if TYPE_CHECKING:  # only stores talk to PostgreSQL; this hands a transaction on
    from shared.stores.database import Transaction


class OpenSessions(Protocol):
    async def end_all(self, user_id: UserId, but: str | None = None) -> int:
        """Ends every session of this user and says how many it were, but for the one of this id. Safe to call again. Raises Unavailable."""
        ...


class SessionEnds:
    def __init__(self, store: Store, sessions: OpenSessions) -> None:
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
