"""auth's table signing_keys. Every method may raise Unavailable."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from services.auth.sessions.signing_keys import KnownKey
from services.auth.store import AuthTables
from shared.stores import database

CHANGES = "auth_signing_keys"


@dataclass(frozen=True, slots=True)
class StoredKey:
    known: KnownKey
    sealed: bytes


class SigningKeyStore(AuthTables):
    async def list(self) -> tuple[StoredKey, ...]:
        return tuple(map(_stored, await self._db.rows("list_signing_keys")))

    @contextlib.asynccontextmanager
    async def changing(self) -> AsyncGenerator[tuple["KeyChange", tuple[StoredKey, ...]], None]:
        """Lock the keys against other changes until the end of the block."""
        async with self._db.transaction() as transaction:
            await transaction.run("lock_signing_keys")
            stored = tuple(map(_stored, await transaction.rows("list_signing_keys")))
            yield KeyChange(transaction), stored


class KeyChange:
    def __init__(self, transaction: database.Transaction) -> None:
        #: For what must be committed with the change, like its row in the audit log.
        self.transaction = transaction

    async def add(self, stored: StoredKey, x: str) -> None:
        key = stored.known
        await self.transaction.run("add_signing_key", key.kid, x, stored.sealed, key.epoch, key.made_at, key.signs_from)

    async def retire(self, kid: str, at: datetime) -> None:
        await self.transaction.run("retire_signing_key", kid, at)

    async def reseal(self, kid: str, sealed: bytes) -> None:
        await self.transaction.run("reseal_signing_key", kid, sealed)

    async def drop(self, kids: tuple[str, ...]) -> None:
        await self.transaction.run("drop_signing_keys", kids)


def _stored(row: database.DatabaseRow) -> StoredKey:
    known = KnownKey(kid=row["kid"], epoch=row["epoch"], made_at=row["made_at"], signs_from=row["signs_from"], retired_at=row["retired_at"])
    return StoredKey(known, row["sealed_private"])
