"""What erasure, export and retention do to auth's tables. Every method may raise Unavailable."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

import msgspec

from shared.stores import database
from shared.types import UserId, UserRole

#: Accounts that one look finds; the next finds the rest.
_MOST_DUE = 100
_RETENTION_SECONDS = 30
#: It reads all personal parts of the audit log, a year of them.
_ERASURE_SECONDS = 60

#: In this order: what names the person is found by later ones, and goes last.
_ERASED = (
    "hand_on_organisations",
    "erase_former_hashes",
    "erase_keys",
    "erase_invitations",
    "close_organisations",
    "erase_memberships",
    "erase_second_factor",
    "erase_links",
    "erase_preferences",
    "erase_resets",
    "erase_tickets",
    "erase_nodes",
    "erase_refusals",
    "erase_mentions",
)

#: A file of the export -> the query whose rows it holds.
_EXPORTED = MappingProxyType(
    {
        "account.json": "export_account",
        "preferences.json": "export_preferences",
        "keys.json": "export_keys",
        "organisations.json": "export_organisations",
        "invitations.json": "export_invitations",
        "logins-at-providers.json": "export_links",
        "nodes.json": "export_nodes",
        "tickets.json": "export_tickets",
    }
)


@dataclass(frozen=True, slots=True)
class Due:
    """Somebody who is to be erased now, locked until the end of the transaction."""

    user_id: UserId
    role: UserRole


class PrivacyStore:
    def __init__(self, db: database.Database) -> None:
        self._db = db

    # --- erasure -----------------------------------------------------------------------------------------------------

    async def administrators(self, transaction: database.Transaction) -> frozenset[UserId]:
        """Those that stay; nobody else can be counted out before this transaction ends."""
        return frozenset(UserId(row["id"]) for row in await transaction.rows("lock_administrators"))

    async def orphans_of(self, transaction: database.Transaction, user_id: UserId) -> tuple[str, ...]:
        """Names of organisations, at most ten; nobody comes or goes there before this transaction ends."""
        await transaction.rows("lock_organisations_of", user_id)
        return tuple(row["name"] for row in await transaction.rows("list_orphans_of", user_id))

    async def plan_erasure(self, transaction: database.Transaction, user_id: UserId, days: int) -> datetime | None:
        """None where it was planned before."""
        at: datetime | None = await transaction.value("plan_erasure", user_id, days)
        return at

    async def find_erasure(self, transaction: database.Transaction, user_id: UserId) -> datetime | None:
        at: datetime | None = await transaction.value("find_erasure", user_id)
        return at

    async def call_off(self, transaction: database.Transaction, user_id: UserId) -> bool:
        """Whether there was anything to call off. For logins, too."""
        return bool(await transaction.run("call_erasure_off", user_id))

    async def due(self) -> tuple[UserId, ...]:
        return tuple(UserId(row["id"]) for row in await self._db.rows("list_due_erasures", _MOST_DUE))

    def erasing(self) -> AbstractAsyncContextManager[database.Transaction]:
        """For ``take_due`` and ``erase``: it has more time than others."""
        return self._db.transaction(deadline_seconds=_ERASURE_SECONDS)

    async def take_due(self, transaction: database.Transaction, user_id: UserId) -> Due | None:
        """None where another replica is at it, or it was called off."""
        row = await transaction.row("take_due_erasure", user_id)
        return None if row is None else Due(UserId(row["id"]), UserRole(row["role"]))

    async def erase(self, transaction: database.Transaction, user_id: UserId, pseudonym: str) -> None:
        """All that auth's tables have, but for the personal parts of what this user did in the audit log."""
        await transaction.rows("lock_organisations_of", user_id)
        for query in _ERASED:
            await transaction.run(query, user_id)
        await transaction.run("erase_user", user_id, pseudonym)

    # --- export ------------------------------------------------------------------------------------------------------

    @property
    def exported(self) -> Mapping[str, str]:
        """File -> query, for ``rows_of``."""
        return _EXPORTED

    async def rows_of(self, query: str, user_id: UserId) -> tuple[msgspec.Raw, ...]:
        """Each a JSON object."""
        return tuple(msgspec.Raw(row["written"].encode()) for row in await self._db.rows(query, user_id, deadline_seconds=10))

    # --- retention ---------------------------------------------------------------------------------------------------

    async def forget(self, query: str, before: datetime, most: int) -> int:
        """How many rows of what ended before then were removed, or had what is personal taken out; ``most`` at once."""
        return await self._db.run(query, before, most, deadline_seconds=_RETENTION_SECONDS)
