"""Leads the alerts, or follows who does. One replica, the leader, evaluates the rules and tells people; it holds a lock in PostgreSQL and
writes there what it knows. The others show what is written.

A look never waits for PostgreSQL. While that is away the last leader continues in memory, and the others show what they read last.
Before anything is handed to those who tell people, the leader writes it down in the session that holds the lock: a replica that has
lost the lock without noticing fails there, and tells nobody.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Final

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

#: How often the lock is asked for or confirmed, and what other replicas wrote is read.
EVERY_SECONDS: Final = 2.0
#: So long after PostgreSQL is there (again) a replica leaves the lock to the last leader, which knows what came meanwhile.
_GRACE_SECONDS: Final = 5.0
#: After PostgreSQL could not be opened.
_AGAIN_SECONDS: Final = 1.0
#: While news wait to be taken; that they were is written soon, or the next leader tells them again.
_SOON_SECONDS: Final = 0.5
#: So long a service that has just started waits for PostgreSQL before it goes on without.
REMEMBERING_SECONDS: Final = 20.0
#: How often the windows are written, at the soonest; large ones so seldom that they are so many bytes a second.
_SAVE_SECONDS: Final = 60.0
_SAVED_BYTES_A_SECOND: Final = 16_384
#: An ended silence stays in the table for so long: a replica that was without PostgreSQL for longer brings it back.
_STAYS_SECONDS: Final = 24 * 3600.0
_NOT_YET: Final = "not connected yet"

_log = logs.get(part="alerts")


class AlertPersistence:
    """``node`` is this replica, and ``replicas`` says which of those that live may lead, in their order."""

    def __init__(
        self,
        watch: RuleWatch,
        node: NodeId,
        replicas: Callable[[], Sequence[NodeId]],
        clock: Callable[[], float],
        *,
        has_database: bool = True,
    ) -> None:
        self._watch = watch
        self._node = node
        self._replicas = replicas
        self._clock = clock
        self._has_database = has_database
        #: This process.
        self._own = f"{node}/{secrets.token_hex(8)}"
        #: Which process led last; empty while it is not known.
        self._leader = ""
        self._began_at = watch.read_at = clock()
        self.leads = False
        #: What those who tell people still have to tell; of the time since this replica leads.
        self.delivery = Delivery(())
        #: While PostgreSQL was open at least once.
        self.store: AlertStore | None = None
        #: What PostgreSQL has; None until it was written in this session.
        self._written: dict[tuple[str, float], StoredAlertState] | None = None
        self._attended: list[AttendedWorker] | None = None
        self._has_recalled = False
        self._session_at = time.monotonic()
        self._saved_at = 0.0
        self._save_after = _SAVE_SECONDS
        #: Why nothing can be written; empty while it can.
        self._trouble = _NOT_YET

    def check(self) -> Check:
        """The service can do without."""
        lost = "silences and who was told of what would not outlive a restart now"
        return Check("alerts", ok=not self._trouble, detail=f"{self._trouble}; {lost}" if self._trouble else "", needed=False)

    # --- one round --------------------------------------------------------------------------------------------------

    async def round(self, session: Leadership | None, *, looks: bool) -> bool:
        """What is to be done now, without PostgreSQL where there is no ``session``. False where this replica led until now."""
        watch = self._watch
        watch.changed.clear()
        led, self.leads = self.leads, await self._lead(session)
        if led != self.leads:
            _log.info("leads the alerts" if self.leads else "another replica leads the alerts", database=session is not None)
        if self.leads:
            watch.read_at = None
            if looks:
                self.delivery.note(await watch.look())
            self.delivery.settle()
            if session is not None:
                await self._write(session)
            self.delivery.hand_over()
        return self.leads or not led

    async def _lead(self, session: Leadership | None) -> bool:
        """Whether this replica leads now; and what the others wrote."""
        replicas = self._replicas()
        if not self._has_database:
            return True
        if session is None:
            return self._stands_in(replicas)
        if session.is_held and self._node not in replicas:
            raise errors.Unavailable("a replica of an older version leads", hint="stop it when the new ones run")
        assert self.store is not None  # it made the session
        now = self._clock()
        leader = (await self.store.state(State.LEADER, 0) or b"").decode()
        is_early = time.monotonic() - self._session_at < _GRACE_SECONDS and self._is_another(leader, replicas)
        leads = self._node in replicas and not is_early and await session.take()
        await self._exchange(self.store, now)
        stored = await self.store.alarms(now)
        alert_states = self._watch.alert_states
        if not leads:
            alert_states.show(stored, now)
            self._watch.read_at = now
        elif leader == self._own:
            alert_states.hear(stored)
        else:
            await self._take_over(self.store, session, stored, now)
            leader = self._own
        self._leader = leader
        return leads

    def _stands_in(self, replicas: Sequence[NodeId]) -> bool:
        """Without PostgreSQL the last leader continues; the first of those that live does where there is none."""
        if self._leader == self._own or self._is_another(self._leader, replicas):
            return self._leader == self._own
        has_waited = self._leader != "" or self._clock() - self._began_at >= REMEMBERING_SECONDS
        return has_waited and replicas[:1] == [self._node]

    def _is_another(self, leader: str, replicas: Sequence[NodeId]) -> bool:
        """That lives."""
        node = leader.partition("/")[0]
        return node in replicas and node != self._node

    async def _take_over(self, store: AlertStore, session: Leadership, stored: Sequence[StoredAlertState], now: float) -> None:
        watch = self._watch
        if self.leads:  # without PostgreSQL, until now
            watch.alert_states.resume(stored, now)
        else:
            watch.alert_states.show(stored, now)
            watch.book.clear()
        self.delivery.resume(stored)
        window = await store.state(State.WINDOW, 0)
        if window is not None:
            try:
                watch.book.load(window, now)
            except ValueError as error:
                _log.warning("the windows of alert rules begin anew", reason=str(error))
        await store.write_state(session, State.LEADER, self._own.encode(), now)

    async def _exchange(self, store: AlertStore, now: float) -> None:
        """What people did at this replica and at others; and once, which workers were there before it began."""
        alert_states = self._watch.alert_states
        stored = await store.silences(now)
        alert_states.hear_silences(stored.lasting, stored.ended, now)
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
        assert store is not None  # it made the session
        if alert_states.looked_at is None:
            return
        kept = {(one.alarm.id, one.alarm.since): one for one in self.delivery.with_owed(alert_states.remembered())}
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
            window = await asyncio.to_thread(self._watch.book.dump)
            await store.write_state(session, State.WINDOW, window, now)
            await store.delete_silences_before(now - 2 * ENDED_SECONDS)
            self._saved_at, self._save_after = now, max(_SAVE_SECONDS, len(window) / _SAVED_BYTES_A_SECOND)

    # --- its life ---------------------------------------------------------------------------------------------------

    async def keep_open(self, url: str) -> None:
        """For ever: PostgreSQL, as soon as it is there."""
        while True:
            try:
                async with AlertStore.open(url, all_rules.ALL) as self.store:
                    await asyncio.Event().wait()
            except (errors.Unavailable, errors.BadSettings) as error:
                self.say(f"{error.message} ({error.hint})")
            await asyncio.sleep(_AGAIN_SECONDS)

    async def serve(self, delivery: Delivery) -> None:
        """Until this replica has led and does no more."""
        self.delivery = delivery
        while True:
            has_answered = False
            try:
                async with self._session() as session:
                    while await self.round(session, looks=self._watch.is_due):
                        has_answered = True
                        self.say("")
                        await self._wait()
                    return
            except errors.Unavailable as error:
                self.say(f"{error.message} ({error.hint})")
            # A session that ended says nothing of PostgreSQL, and another replica may have the lock: that is asked first.
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
            raise errors.Unavailable("PostgreSQL does not answer", hint="is it running, and is DATABASE_URL right?")
        else:
            async with self.store.leadership() as session:
                yield session

    def forget_session(self) -> None:
        """What PostgreSQL has is written again: it may be another one, or one that was put back."""
        self._written = self._attended = None
        self._saved_at = 0.0
        self._session_at = time.monotonic()

    async def _wait(self) -> None:
        """Until there is something to do."""
        for _ in range(max(1, round(EVERY_SECONDS / _SOON_SECONDS))):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SOON_SECONDS):
                    await self._watch.changed.wait()
            if self._watch.changed.is_set() or self.delivery.has_taken or self._watch.is_due:
                return

    def say(self, trouble: str) -> None:
        """Once for each change."""
        was_well = self._trouble in ("", _NOT_YET)
        if trouble and was_well:
            _log.warning("what is known of alerts is not written", reason=trouble)
        elif not was_well and not trouble:
            _log.info("what is known of alerts is written")
        self._trouble = trouble
