"""Hold this replica's opened signing keys, keep them the same as every other replica's, and publish and rotate them by RPC."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from services.auth import audit_records
from services.auth.audit_trail import AuditTrail
from services.auth.sealing import DataSealer
from services.auth.sessions import signing_key_store, signing_keys
from services.auth.sessions.signing_key_store import KeyChange, SigningKeyStore, StoredKey
from services.auth.sessions.signing_keys import KnownKey, PrivateSigningKey, RotationPlan
from shared import errors
from shared.api import auth
from shared.node import lifecycle
from shared.rpc import RpcCall, serves
from shared.stores.transactions import Transaction
from shared.telemetry import logs

_PURPOSE = "signing-key"
_REFRESH_SECONDS = 60
#: A token may name any key, so unknown ones make us ask PostgreSQL at most this often.
_RELOAD_SECONDS = 10

_log = logs.get(part="signing")


class ActiveKeys:
    """``VerificationKeys``. Call ``begin`` once, then run ``run`` as a task; the other methods may be called at any time."""

    def __init__(
        self,
        rows: SigningKeyStore,
        sealer: DataSealer,
        lifetime: timedelta,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = rows
        self._sealer = sealer
        self._lifetime = lifetime
        self._now = now
        self._clock = clock
        self._known: tuple[KnownKey, ...] = ()
        self._opened: dict[str, PrivateSigningKey] = {}
        #: One at a time, so that no older state replaces a newer one.
        self._refresh_lock = asyncio.Lock()
        self._reload_lock = asyncio.Lock()
        self._reloaded_at = -float(_RELOAD_SECONDS)

    async def begin(self) -> None:
        """Read the keys, or create the first one. Raises Unavailable, also if they were sealed with another DATA_KEY."""
        await self.refresh()

    async def run(self) -> None:
        """Run until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._rows.listen(signing_key_store.CHANGES, self._note_change))
            tasks.create_task(lifecycle.every(_REFRESH_SECONDS, self.refresh))

    def signer(self) -> PrivateSigningKey:
        chosen = signing_keys.signer_of(self._known, self._now())
        assert chosen is not None, "begin has created the first key"
        return self._opened[chosen.kid]

    async def find(self, kid: str) -> PrivateSigningKey | None:
        if kid not in self._opened:
            await self._reload_if_unknown(kid)
        now = self._now()
        return next((self._opened[kid] for key in self._known if key.kid == kid and not key.is_over(now)), None)

    def published(self) -> tuple[PrivateSigningKey, ...]:
        """Return all keys whose tokens are valid, and the next one, in signing order."""
        now = self._now()
        return tuple(self._opened[key.kid] for key in self._known if not key.is_over(now))

    async def refresh(self) -> None:
        """Read the keys, and rotate them if it is due. Raises Unavailable."""
        stored = await self._read()
        if signing_keys.plan([one.known for one in stored], self._now(), self._lifetime).is_empty and not self._outdated(stored):
            return
        async with self._rows.changing() as (change, found):
            locked = self._readable(found)
            # Again under the lock: another replica may have done it a moment ago.
            plan = signing_keys.plan([one.known for one in locked], self._now(), self._lifetime)
            await self._apply(change, plan)
            for one in self._outdated(locked):
                if one.known.kid not in plan.drop:
                    await change.reseal(one.known.kid, self._sealed(self._open(one)))
        await self._read()

    @contextlib.asynccontextmanager
    async def rotating(self, *, at_once: bool, above: int = 0) -> AsyncIterator[Transaction]:
        """Rotate in one transaction with what the block writes. ``at_once`` drops all other keys and begins an epoch above ``above``.
        Raises Unavailable."""
        async with self._rows.changing() as (change, found):
            known = [one.known for one in self._readable(found)]
            now = self._now()
            plan = signing_keys.plan_emergency(known, now, above) if at_once else signing_keys.plan_rotation(known, now)
            await self._apply(change, plan)
            yield change.transaction
        # Committed already; if the keys cannot be read now, ``run`` will.
        with contextlib.suppress(errors.Unavailable):
            await self._read()

    async def _apply(self, change: KeyChange, plan: RotationPlan) -> None:
        if plan.drop:
            await change.drop(plan.drop)
            _log.info("signing keys dropped", kids=plan.drop)
        if plan.make is None:
            return
        key = PrivateSigningKey.generate(plan.epoch)
        known = KnownKey(kid=key.kid, epoch=key.epoch, made_at=self._now(), signs_from=plan.make)
        await change.add(StoredKey(known, self._sealed(key)), key.x)
        for kid in plan.retire:
            await change.retire(kid, plan.make)
        _log.info("signing key created", kid=key.kid, epoch=key.epoch, signs_from=plan.make.isoformat())

    async def _reload_if_unknown(self, kid: str) -> None:
        """Concurrent callers share one look."""
        async with self._reload_lock:
            if kid not in self._opened and self._clock() - self._reloaded_at >= _RELOAD_SECONDS:
                self._reloaded_at = self._clock()
                await self._read()

    async def _read(self) -> list[StoredKey]:
        async with self._refresh_lock:
            stored = self._readable(await self._rows.list())
            opened = {one.known.kid: self._opened.get(one.known.kid) or self._open(one) for one in stored}
            # Assigned together, so that a chosen key is always opened.
            self._known, self._opened = tuple(one.known for one in stored), opened
            return stored

    def _readable(self, stored: Iterable[StoredKey]) -> list[StoredKey]:
        """Leave out rows that someone else has added or changed: their keys sign nothing and must not cause failures."""
        return [one for one in stored if one.known.kid in self._opened or self._is_ours(one)]

    def _is_ours(self, stored: StoredKey) -> bool:
        try:
            return self._open(stored).kid == stored.known.kid
        except (errors.Internal, ValueError) as error:
            _log.error("ignoring an invalid row of signing_keys", kid=stored.known.kid, reason=str(error))
            return False

    def _open(self, stored: StoredKey) -> PrivateSigningKey:
        return PrivateSigningKey.from_raw(self._sealer.open(_PURPOSE, stored.known.kid, stored.sealed), stored.known.epoch)

    def _sealed(self, key: PrivateSigningKey) -> bytes:
        return self._sealer.seal(_PURPOSE, key.kid, key.private.private_bytes_raw())

    def _outdated(self, stored: Sequence[StoredKey]) -> list[StoredKey]:
        return [one for one in stored if self._sealer.is_outdated(one.sealed)]

    async def _note_change(self, _payload: str | None) -> None:
        await self._read()


class SigningKeyRpc:
    def __init__(self, trail: AuditTrail, signers: ActiveKeys) -> None:
        self._trail = trail
        self._signers = signers

    @serves(auth.get_signing_keys)
    async def get_signing_keys(self, request: auth.GetSigningKeys, call: RpcCall) -> auth.SigningKeys:
        return self._published()

    @serves(auth.rotate_signing_keys)
    async def rotate_signing_keys(self, request: auth.RotateSigningKeys, call: RpcCall) -> auth.SigningKeys:
        caller = call.principal
        async with self._signers.rotating(at_once=request.at_once) as transaction:
            act = audit_records.of_mesh("signing_keys.rotate", caller, at_once="yes" if request.at_once else "no")
            await self._trail.add(transaction, act)
        _log.info("signing keys rotated", at_once=request.at_once, by=caller.user_id)
        return self._published()

    def _published(self) -> auth.SigningKeys:
        return auth.SigningKeys(tuple(auth.SigningKey(key.kid, key.x) for key in self._signers.published()))
