"""Elect the leader for alerts, and share the state of alerts between replicas through PostgreSQL.

The leader holds a lock in PostgreSQL, evaluates the rules, stores the state and notifies people. The other replicas show the stored state.
Evaluation never waits for PostgreSQL: while it is down, the last leader continues in memory, and the others show what they read last.
Before the leader notifies anyone, it writes in the session that holds the lock. A replica that lost the lock fails there and notifies
nobody.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from services.metrics.alerting.alert_state import ENDED_SECONDS, OUTAGE_SECONDS, StoredAlertState
from services.metrics.alerting.alert_store import AlertStore, Leadership, State
from services.metrics.alerting.delivery import Delivery
from services.metrics.alerting.rule_watch import RuleWatch
from services.metrics.alerting.rules import all_rules
from services.metrics.alerting.worker_attendance import AttendedWorker
from shared import errors
from shared.api.gateway import Check
from shared.telemetry import logs
from shared.types import NodeId

#: How often to try or confirm the lock, and to read what other replicas wrote.
EVERY_SECONDS: Final = 2.0
#: After PostgreSQL comes back, other replicas leave the lock to the last leader, whose state is newer, for this time.
_GRACE_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 1.0
#: While notices are being sent, their success is stored soon, or the next leader sends them again.
_SOON_SECONDS: Final = 0.5
#: How long a new process waits for PostgreSQL before it evaluates without it.
REMEMBERING_SECONDS: Final = 20.0
#: The shortest interval between writes of the sample window, and the maximum average write rate.
_SAVE_SECONDS: Final = 60.0
_SAVED_BYTES_A_SECOND: Final = 16_384
#: How long an ended silence stays stored. A replica that is without PostgreSQL for longer restores the silence.
_STAYS_SECONDS: Final = 24 * 3600.0
_NOT_YET: Final = "not connected yet"

_log = logs.get(part="alerts")


class LeaderDuty(Protocol):
    """What else only the leader does."""

    async def round(self, session: Leadership | None, store: AlertStore | None, *, leads: bool) -> None:
        """Take part in a round, quickly. ``session`` and ``store`` are None without PostgreSQL. May raise Unavailable if there is a
        session, which then ends."""
        ...


class AlertPersistence:
    """``replicas`` returns the live replicas that may lead, in order; ``node`` is this one."""

    def __init__(
        self,
        watch: RuleWatch,
        node: NodeId,
        replicas: Callable[[], Sequence[NodeId]],
        clock: Callable[[], float],
        *,
        has_database: bool = True,
        duty: LeaderDuty | None = None,
    ) -> None:
        self._watch = watch
        self._duty = duty
        self._node = node
        self._replicas = replicas
        self._clock = clock
        self._has_database = has_database
        self._own = f"{node}/{secrets.token_hex(8)}"
        self._leader = ""
        self._began_at = watch.read_at = clock()
        self.leads = False
        self.delivery = Delivery(())
        #: None until PostgreSQL was opened once.
        self.store: AlertStore | None = None
        #: The stored alerts; None until they were written in this session.
        self._written: dict[tuple[str, float], StoredAlertState] | None = None
        self._attended: list[AttendedWorker] | None = None
        self._has_recalled = False
        self._session_at = time.monotonic()
        self._saved_at = 0.0
        self._save_after = _SAVE_SECONDS
        self._trouble = _NOT_YET

    def check(self) -> Check:
        lost = "a restart would lose silences and the delivery state of alerts"
        return Check("alerts", ok=not self._trouble, detail=f"{self._trouble}; {lost}" if self._trouble else "", needed=False)

    async def round(self, session: Leadership | None, *, looks: bool) -> bool:
        """Do one round; without PostgreSQL if ``session`` is None. Returns False if this replica lost the lead."""
        watch = self._watch
        watch.changed.clear()
        led, self.leads = self.leads, await self._lead(session)
        if led != self.leads:
            _log.info("became leader for alerts" if self.leads else "no longer leader for alerts", database=session is not None)
        if self.leads:
            watch.read_at = None
            if looks:
                self.delivery.note(await watch.look())
            self.delivery.settle()
            if session is not None:
                await self._write(session)
            self.delivery.hand_over()
        if self._duty is not None:
            await self._duty.round(session, None if session is None else self.store, leads=self.leads)
        return self.leads or not led

    async def _lead(self, session: Leadership | None) -> bool:
        """Return whether this replica leads now. Also exchanges state with the others."""
        replicas = self._replicas()
        if not self._has_database:
            return replicas[:1] == [self._node]
        if session is None:
            return self._may_lead_alone(replicas)
        if session.is_held and self._node not in replicas:
            raise errors.Unavailable("a replica of an older version leads", hint="stop it once the new ones are running")
        assert self.store is not None  # it opened the session
        now = self._clock()
        leader = (await self.store.state(State.LEADER, 0) or b"").decode()
        is_early = time.monotonic() - self._session_at < _GRACE_SECONDS and self._is_another(leader, replicas)
        leads = self._node in replicas and not is_early and await session.take()
        await self._exchange(self.store, now)
        stored = await self.store.alerts(now)
        alert_states = self._watch.alert_states
        if not leads:
            alert_states.show(stored, now)
            self._watch.read_at = now
        elif leader == self._own:
            alert_states.merge_acknowledgements(stored)
        else:
            await self._take_over(self.store, session, stored, now)
            leader = self._own
        self._leader = leader
        return leads

    def _may_lead_alone(self, replicas: Sequence[NodeId]) -> bool:
        """Without PostgreSQL, return whether this is the last leader, or the first replica if there is no leader."""
        if self._leader == self._own or self._is_another(self._leader, replicas):
            return self._leader == self._own
        has_waited = self._leader != "" or self._clock() - self._began_at >= REMEMBERING_SECONDS
        return has_waited and replicas[:1] == [self._node]

    def _is_another(self, leader: str, replicas: Sequence[NodeId]) -> bool:
        node = leader.partition("/")[0]
        return node in replicas and node != self._node

    async def _take_over(self, store: AlertStore, session: Leadership, stored: Sequence[StoredAlertState], now: float) -> None:
        watch = self._watch
        if self.leads:  # so far without PostgreSQL
            watch.alert_states.resume(stored, now)
        else:
            watch.alert_states.show(stored, now)
            watch.sample_window.clear()
        self.delivery.resume(stored)
        window = await store.state(State.WINDOW, 0)
        if window is not None:
            try:
                watch.sample_window.load(window, now)
            except ValueError as error:
                _log.warning("the sample window of alert rules starts empty", reason=str(error))
        await store.write_state(session, State.LEADER, self._own.encode(), now)

    async def _exchange(self, store: AlertStore, now: float) -> None:
        """Exchange user actions with other replicas. Once, also read which workers existed before this process."""
        alert_states = self._watch.alert_states
        stored = await store.silences(now)
        alert_states.merge_silences(stored.lasting, stored.ended, now)
        made = [silence for silence in alert_states.silences() if silence.id not in stored.ids]
        ended, acknowledged = alert_states.ended_silences(), alert_states.acknowledged()
        if made:
            await store.write_silences(made)
        if ended:
            await store.end_silences(ended, now + _STAYS_SECONDS)
        for seen in acknowledged:
            await store.acknowledge(seen)
        alert_states.forget_written(ended, acknowledged)
        if not self._has_recalled:
            members = await store.state(State.WORKERS, now - OUTAGE_SECONDS)
            if members is not None:
                self._watch.attendance.recall(msgspec.json.decode(members, type=list[AttendedWorker]), datetime.fromtimestamp(now, UTC))
            self._has_recalled = True

    async def _write(self, session: Leadership) -> None:
        store, alert_states, now = self.store, self._watch.alert_states, self._clock()
        assert store is not None  # it opened the session
        if alert_states.looked_at is None:
            return
        kept = {(one.alert.id, one.alert.since): one for one in self.delivery.with_owed(alert_states.remembered())}
        written = self._written
        if written is None or written != kept:
            changed = [one for key, one in kept.items() if written is None or written.get(key) != one]
            await store.write(session, changed, kept.keys())
            self._written = kept
        is_due = not 0 <= now - self._saved_at < self._save_after
        members = list(self._watch.attendance.members().values())
        if is_due or members != self._attended:
            await store.write_state(session, State.WORKERS, msgspec.json.encode(members), now)
            self._attended = members
        if is_due:
            window = await asyncio.to_thread(self._watch.sample_window.dump)
            await store.write_state(session, State.WINDOW, window, now)
            await store.delete_silences_before(now - 2 * ENDED_SECONDS)
            self._saved_at, self._save_after = now, max(_SAVE_SECONDS, len(window) / _SAVED_BYTES_A_SECOND)

    async def keep_open(self, url: str, *, migrate: bool = True) -> None:
        """Keep PostgreSQL open, and retry while it is down."""
        while True:
            try:
                async with AlertStore.open(url, all_rules.ALL, migrate=migrate) as self.store:
                    await asyncio.Event().wait()
            except (errors.Unavailable, errors.BadSettings) as error:
                self.set_trouble(f"{error.message} ({error.hint})")
            await asyncio.sleep(_AGAIN_SECONDS)

    async def serve(self, delivery: Delivery) -> None:
        """Run rounds until this replica loses the lead."""
        self.delivery = delivery
        while True:
            has_answered = False
            try:
                async with self._session() as session:
                    while await self.round(session, looks=self._watch.is_due):
                        has_answered = True
                        self.set_trouble("")
                        await self._wait()
                    return
            except errors.Unavailable as error:
                self.set_trouble(f"{error.message} ({error.hint})")
            # If a working session broke, try to reconnect first: another replica may have the lock.
            if not has_answered:
                if not await self.round(None, looks=self._watch.is_due):
                    return
                await self._wait()

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[Leadership | None]:
        self.forget_session()
        if not self._has_database:
            yield None
        elif self.store is None:
            raise errors.Unavailable("PostgreSQL does not answer", hint="check that it is running and that DATABASE_URL is right")
        else:
            async with self.store.leadership() as session:
                yield session

    def forget_session(self) -> None:
        """Write everything again: PostgreSQL may have been replaced or restored."""
        self._written = self._attended = None
        self._saved_at = 0.0
        self._session_at = time.monotonic()

    async def _wait(self) -> None:
        for _ in range(max(1, round(EVERY_SECONDS / _SOON_SECONDS))):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SOON_SECONDS):
                    await self._watch.changed.wait()
            if self._watch.changed.is_set() or self.delivery.has_taken or self._watch.is_due:
                return

    def set_trouble(self, trouble: str) -> None:
        """Log each change once."""
        was_well = self._trouble in ("", _NOT_YET)
        if trouble and was_well:
            _log.warning("the alert state cannot be stored", reason=trouble)
        elif not was_well and not trouble:
            _log.info("the alert state is stored again")
        self._trouble = trouble
