"""auth's table second_factors. Every method may raise Unavailable."""

import contextlib
from dataclasses import dataclass

from services.auth.store import AccountTables
from shared.stores.database import Transaction
from shared.types import UserId


@dataclass(frozen=True, slots=True)
class Factor:
    """A user's second factor; seeds are stored sealed."""

    #: Enabled; None if the setup is incomplete.
    seed: bytes | None
    #: Being set up, perhaps beside an enabled one.
    begun_seed: bytes | None
    recovery_codes_left: int

    @property
    def is_enabled(self) -> bool:
        return self.seed is not None


NO_FACTOR = Factor(None, None, 0)


class FactorStore:
    def __init__(self, store: AccountTables) -> None:
        self._store = store

    def transaction(self) -> contextlib.AbstractAsyncContextManager[Transaction]:
        return self._store.transaction()

    async def find(self, user_id: UserId) -> Factor:
        async with self._store.transaction() as transaction:
            row = await transaction.row("find_factor", user_id)
        return NO_FACTOR if row is None else Factor(row["sealed_seed"], row["begun_seed"], row["recovery_codes_left"])

    async def begin(self, user_id: UserId, sealed: bytes) -> None:
        async with self._store.transaction() as transaction:
            await transaction.run("begin_factor", user_id, sealed)

    async def enable(self, transaction: Transaction, user_id: UserId, begun: bytes, step: int, hashes: tuple[str, ...]) -> bool:
        """Return False if another setup was begun meanwhile. Other services forget what they cached about the user."""
        await transaction.run("tell_of_user", user_id)
        return bool(await transaction.run("enable_factor", user_id, begun, step, hashes))

    async def use_step(self, user_id: UserId, step: int) -> bool:
        """Return False if the step was used before. Only one of several concurrent callers succeeds."""
        async with self._store.transaction() as transaction:
            return bool(await transaction.run("use_factor_step", user_id, step))

    async def use_recovery_code(self, user_id: UserId, digest: str) -> bool:
        """Return False if it is not an unused code. Only one of several concurrent callers succeeds."""
        async with self._store.transaction() as transaction:
            return bool(await transaction.run("use_recovery_code", user_id, digest))

    async def renew_recovery_codes(self, transaction: Transaction, user_id: UserId, hashes: tuple[str, ...]) -> bool:
        """Return False if no second factor is enabled."""
        return bool(await transaction.run("renew_recovery_codes", user_id, hashes))

    async def remove(self, transaction: Transaction, user_id: UserId) -> bool:
        return bool(await transaction.run("remove_factor", user_id))

    async def reseal(self, user_id: UserId, sealed: bytes, newer: bytes) -> None:
        async with self._store.transaction() as transaction:
            await transaction.run("reseal_factor", user_id, sealed, newer)
