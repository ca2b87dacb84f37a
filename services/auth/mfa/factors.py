"""Check codes: an app's current code, or a recovery code. Each works once across all replicas."""

import contextlib
import time
from collections.abc import Callable

from services.auth.dependencies import Dependencies
from services.auth.mfa import recovery_codes, totp
from services.auth.mfa.factor_store import Factor, FactorStore
from services.auth.sealing import DataSealer
from services.auth.sessions import failed_logins
from services.auth.sessions.failed_logins import FailedLogins
from shared import errors
from shared.types import UserId

_PURPOSE = "totp seed"


class Factors:
    """Every method may raise Unavailable."""

    def __init__(
        self, store: FactorStore, sealer: DataSealer, guesses: FailedLogins, *, pepper: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._guesses = guesses
        self._pepper = pepper
        self._clock = clock

    @classmethod
    def of(cls, parts: Dependencies) -> "Factors":
        """Raises BadSettings for an invalid DATA_KEY."""
        sealer = DataSealer.of(parts.settings.data_key, parts.settings.data_key_old)
        return cls(FactorStore(parts.store), sealer, parts.guesses, pepper=parts.settings.api_key_pepper)

    async def find(self, user_id: UserId) -> Factor:
        return await self._store.find(user_id)

    async def take(self, user_id: UserId, code: str, address: str = "", browser: str = "") -> bool:
        """Return whether the code is right, and use it up. Raises Limited and NotAllowed after too many attempts (`failed_logins`). Without
        a second factor no code is right."""
        counted_as = failed_logins.codes_of(user_id)
        await self._guesses.charge(counted_as, address, browser)
        factor = await self._store.find(user_id)
        right = factor.seed is not None and await self._use(user_id, factor.seed, code)
        if right:
            await self._guesses.reset(counted_as, address, browser)
        return right

    async def begin(self, user_id: UserId) -> bytes:
        """Create a seed, which counts only after ``prove`` and ``FactorStore.enable``."""
        seed = totp.new_seed()
        await self._store.begin(user_id, self._sealer.seal(_PURPOSE, user_id, seed))
        return seed

    def prove(self, user_id: UserId, factor: Factor, code: str) -> int | None:
        """Return the step of a code of the seed being set up; None if the code is wrong."""
        if factor.begun_seed is None:
            return None
        return totp.find_step(self._sealer.open(_PURPOSE, user_id, factor.begun_seed), code, self._clock())

    def digests(self, user_id: UserId, codes: tuple[str, ...]) -> tuple[str, ...]:
        """Return what is stored of recovery codes."""
        return tuple(recovery_codes.digest(code, user_id, self._pepper) for code in codes)

    async def _use(self, user_id: UserId, sealed: bytes, code: str) -> bool:
        if totp.may_be(code):
            step = totp.find_step(self._sealer.open(_PURPOSE, user_id, sealed), code, self._clock())
            if step is None or not await self._store.use_step(user_id, step):
                return False
            await self._ensure_current_seal(user_id, sealed)
            return True
        if not recovery_codes.may_be(code):
            return False
        return await self._store.use_recovery_code(user_id, recovery_codes.digest(code, user_id, self._pepper))

    async def _ensure_current_seal(self, user_id: UserId, sealed: bytes) -> None:
        if self._sealer.is_outdated(sealed):
            newer = self._sealer.seal(_PURPOSE, user_id, self._sealer.open(_PURPOSE, user_id, sealed))
            # If this fails, the next right code will do it.
            with contextlib.suppress(errors.Unavailable):
                await self._store.reseal(user_id, sealed, newer)
