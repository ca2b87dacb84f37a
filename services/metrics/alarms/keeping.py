"""Keeps in PostgreSQL what is known of alerts, and hears there what the other replicas know. The only one that writes it.

Memory goes first: a look never waits for PostgreSQL, and while that is away everything goes on without it. What it says then is
put beside what was seen meanwhile, and what was seen wins. Nothing is over because a table does not have it.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from services.metrics.alarms import changes, recalling
from services.metrics.alarms.attendance import Member
from services.metrics.alarms.changes import Written
from services.metrics.alarms.desk import ENDED_SECONDS, JUST_SECONDS, OUTAGE_SECONDS
from services.metrics.alarms.recalling import Past
from services.metrics.alarms.store import Store
from services.metrics.alarms.watch import Watch
from services.metrics.alerts import rules
from services.metrics.history.store import Store as History
from shared import errors
from shared.api.gateway import Check
from shared.telemetry import logs
from shared.types import NodeId

#: After which PostgreSQL is asked what the others know, and tried again where it was away.
EVERY_SECONDS: Final = 5.0
#: While news wait to be taken; that they were is written soon, or another replica tells them, too.
_SOON_SECONDS: Final = 0.5
#: How often it is written that what lasts still does.
TOUCH_SECONDS: Final = 300.0
#: An ended silence stays in the table for so long: a replica that was without PostgreSQL for longer brings it back.
_STAYS_SECONDS: Final = 24 * 3600.0

#: How often the history is tried; then alerts go on without.
_RECALLS: Final = 3
_NOT_YET: Final = "not connected yet"

_log = logs.get(part="alerts")


class Keeper:
    """``node`` is this replica. ``is_all_taken`` says whether all that was to be told has reached somebody."""

    def __init__(
        self,
        watch: Watch,
        node: str,
        is_all_taken: Callable[[], bool],
        clock: Callable[[], float],
        keeps: Mapping[int, timedelta] | None = None,
    ) -> None:
        """``keeps`` is how long the history has rows of each resolution; None where there is no history."""
        self._desk = watch.desk
        self._attendance = watch.attendance
        self._book = watch.book
        self._changed = watch.changed
        self._node = node
        self._is_all_taken = is_all_taken
        self._clock = clock
        self._keeps = keeps
        self._recalls_left = _RECALLS
        #: What PostgreSQL has of this replica; None until it was asked, for each connection again.
        self._written: Written | None = None
        #: Who was there, as PostgreSQL has it; the same.
        self._attended: Mapping[NodeId, Member] | None = None
        self._touched_at: float | None = None
        self._has_resumed = False
        #: Set when what there was before the start is known again: alerts, silences, and how counters grew.
        self.resumed = asyncio.Event()
        #: Why nothing can be written; empty while it can.
        self._trouble = _NOT_YET

    def check(self) -> Check:
        """The service can do without."""
        lost = "silences and who was told of what would not outlive a restart now"
        return Check("alerts", ok=not self._trouble, detail=f"{self._trouble}; {lost}" if self._trouble else "", needed=False)

    async def run(self, url: str) -> None:
        """For ever."""
        while True:
            try:
                async with Store.open(url, self._node, rules.ALL) as store:
                    self.forget_connection()
                    while True:
                        await self.keep(store)
                        self._say("")
                        await self._wait()
            except (errors.Unavailable, errors.BadSettings) as error:
                self._say(f"{error.message} ({error.hint})")
            await asyncio.sleep(EVERY_SECONDS)

    def forget_connection(self) -> None:
        """What PostgreSQL has is asked again: it may be another one, or one that was put back."""
        self._written = self._attended = self._touched_at = None

    async def keep(self, store: Store) -> None:
        """Once: hear what the others know, and write what is new. Raises Unavailable; what was not done then is done by the next call."""
        self._changed.clear()
        await self._keep_silences(store)
        await self._keep_attendance(store)
        if self._written is None:
            own = await store.own()
            if not self._has_resumed:
                self._desk.resume(own, self._clock())
                self._has_resumed = True
            self._written = changes.keyed(own)
            if self._recalls_left and self._keeps is not None:
                self._recalls_left -= 1
                await self._recall(store.history, self._keeps)
                self._recalls_left = 0
            self.resumed.set()
        now = self._clock()
        self._desk.hear(await store.others(now - OUTAGE_SECONDS, now - JUST_SECONDS), now)
        if self._desk.looked_at is not None:
            self._written = await self._write(store, self._written)
            await self._touch(store, self._desk.looked_at)

    async def _recall(self, history: History, keeps: Mapping[int, timedelta]) -> None:
        past = Past()
        began_at = self._book.began_at
        until = datetime.fromtimestamp(self._clock() if began_at is None else began_at, UTC)
        for stretch in recalling.plan(self._book.recallable, until, keeps):
            room = recalling.MAX_STEPS - past.steps
            if room <= 0:
                _log.warning("the history has more than alerts look back on", steps=past.steps, since=stretch.piece.before)
                break
            past.add(stretch, await history.growth(stretch, room))
        self._book.recall(past)

    async def _keep_silences(self, store: Store) -> None:
        now = self._clock()
        stored = await store.silences(now)
        self._desk.hear_silences(stored.lasting, stored.ended, now)
        made = [silence for silence in self._desk.silences() if silence.id not in stored.ids]
        ended = self._desk.ended_silences()
        if made:
            await store.write_silences(made)
        if ended:
            await store.end_silences(ended, now + _STAYS_SECONDS)
            self._desk.forget_ended_silences(ended)

    async def _keep_attendance(self, store: Store) -> None:
        """Before the alerts: one that goes on because somebody is missed must not end at a look that does not miss them."""
        now, attended = self._clock(), self._attended
        if attended is None:
            attended = {one.node: one for one in await store.attendance(now - OUTAGE_SECONDS)}
            if not self._has_resumed:
                self._attendance.recall(attended.values(), datetime.fromtimestamp(now, UTC))
        members = self._attendance.members()
        changed = [one for node, one in members.items() if node not in attended or attended[node].gone_at != one.gone_at]
        # What is in the table from before a long outage goes at the first time.
        if changed or attended.keys() - members or self._attended is None:
            await store.write_attendance(changed, members, now)
        self._attended = members

    async def _write(self, store: Store, written: Written) -> Written:
        kept = changes.settled(self._desk.remembered(), written, is_all_taken=self._is_all_taken())
        found = changes.find(written, kept)
        if found:
            await store.write(found)
        return kept

    async def _touch(self, store: Store, looked_at: float) -> None:
        if self._touched_at is None or not 0 <= looked_at - self._touched_at < TOUCH_SECONDS:
            await store.touch(looked_at)
            await store.delete_before(looked_at - 2 * ENDED_SECONDS)
            self._touched_at = looked_at

    async def _wait(self) -> None:
        """Until there is something to do."""
        were_waiting = not self._is_all_taken()
        for _ in range(round(EVERY_SECONDS / _SOON_SECONDS)):
            try:
                async with asyncio.timeout(_SOON_SECONDS):
                    await self._changed.wait()
                return
            except TimeoutError:
                if were_waiting and self._is_all_taken():
                    return

    def _say(self, trouble: str) -> None:
        """Once for each change."""
        was_well = self._trouble in ("", _NOT_YET)
        if trouble and was_well:
            _log.warning("what is known of alerts is not written", reason=trouble)
        elif not was_well and not trouble:
            _log.info("what is known of alerts is written")
        self._trouble = trouble
