"""Erasure, export and retention in auth's tables. Every method may raise Unavailable."""

from contextlib import AbstractAsyncContextManager
from datetime import datetime

import msgspec

from services.auth.store import AuthTables
from shared.stores import database
from shared.types import TenantId, UserId, UserRole

#: Accounts per round; the next round finds the rest.
_MAX_DUE = 100
_RETENTION_SECONDS = 30
#: It reads all personal parts of the audit log, up to a year of them.
_ERASURE_SECONDS = 60

#: The order matters: rows that identify the user are needed by later queries, and go last.
_ERASED = (
    "hand_on_organisations",
    "erase_former_hashes",
    "erase_keys",
    "erase_invitations",
    "erase_colleague_invitations",
    "close_organisations",
    "erase_memberships",
    "erase_second_factor",
    "erase_links",
    "erase_preferences",
    "erase_resets",
    "erase_notices",
    "erase_tickets",
    "erase_nodes",
    "erase_refusals",
    "erase_mentions",
)


class PrivacyStore(AuthTables):
    async def administrators(self, transaction: database.Transaction) -> frozenset[UserId]:
        """Return the remaining administrators; the set cannot shrink before this transaction ends."""
        return frozenset(UserId(row["id"]) for row in await transaction.rows("lock_administrators"))

    async def orphans_of(self, transaction: database.Transaction, user_id: UserId) -> tuple[str, ...]:
        """Return at most ten organizations that would lose their only owner; their members cannot change before this transaction ends."""
        await transaction.rows("lock_organisations_of", user_id)
        return tuple(row["name"] for row in await transaction.rows("list_orphans_of", user_id))

    async def plan_erasure(self, transaction: database.Transaction, user_id: UserId, days: int) -> datetime | None:
        """Return None if it was planned before."""
        at: datetime | None = await transaction.value("plan_erasure", user_id, days)
        return at

    async def find_erasure(self, transaction: database.Transaction, user_id: UserId) -> datetime | None:
        at: datetime | None = await transaction.value("find_erasure", user_id)
        return at

    async def call_off(self, transaction: database.Transaction, user_id: UserId) -> bool:
        """Return whether there was anything to cancel."""
        return bool(await transaction.run("call_erasure_off", user_id))

    async def due(self) -> tuple[UserId, ...]:
        return tuple(UserId(row["id"]) for row in await self._db.rows("list_due_erasures", _MAX_DUE))

    def erasing(self) -> AbstractAsyncContextManager[database.Transaction]:
        """A transaction with more time, for ``take_due`` and ``erase``."""
        return self._db.transaction(deadline_seconds=_ERASURE_SECONDS)

    async def take_due(self, transaction: database.Transaction, user_id: UserId) -> UserRole | None:
        """Lock an account that is due until the end of the transaction. Return None if another replica handles it, or it was canceled."""
        row = await transaction.row("take_due_erasure", user_id)
        return None if row is None else UserRole(row["role"])

    async def list_sole_organisations(self, transaction: database.Transaction, user_id: UserId) -> tuple[TenantId, ...]:
        """Return the organizations that ``erase`` closes."""
        return tuple(TenantId(row["id"]) for row in await transaction.rows("list_sole_organisations", user_id))

    async def erase(self, transaction: database.Transaction, user_id: UserId, pseudonym: str) -> None:
        """Erase everything in auth's tables, except the personal parts of this user's acts in the audit log."""
        await transaction.rows("lock_organisations_of", user_id)
        for query in _ERASED:
            await transaction.run(query, user_id)
        await transaction.run("erase_user", user_id, pseudonym)

    async def rows_of(self, query: str, user_id: UserId) -> tuple[msgspec.Raw, ...]:
        """Each row is a JSON object."""
        return tuple(msgspec.Raw(row["written"].encode()) for row in await self._db.rows(query, user_id, deadline_seconds=10))

    async def forget(self, query: str, before: datetime, most: int) -> int:
        """Remove or anonymize at most ``most`` rows that ended before this time; return how many."""
        return await self._db.run(query, before, most, deadline_seconds=_RETENTION_SECONDS)
