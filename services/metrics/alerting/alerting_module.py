"""Wire up the notices: look as the leader, send, and handle the RPC methods to list and silence alerts."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from functools import partial
from typing import Final, Protocol

import msgspec

from services.metrics import leader_state
from services.metrics.alerting import notices, rules, silence_store, thresholds
from services.metrics.alerting.notices import Notice, NoticeState, Silence
from services.metrics.alerting.silence_store import MAX_SILENCES, SilenceStore
from services.metrics.history import samples
from services.metrics.leader_state import Database, Leadership, State, moment_of
from shared import errors
from shared.api import alerts as api
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.background.tasks import keep
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import wait_until_set

EVERY_SECONDS: Final = 15.0
#: A stored state older than this is shown with its age.
_OLD_SECONDS: Final = 15.0
_BACKOFF: Final = Backoff(first_seconds=1.0, longest_seconds=60.0)

Collect = Callable[[Set[str]], Awaitable[str]]

_log = logs.get(part="alerts")


class Channel(Protocol):
    name: str

    def due_at(self, owed: Sequence[Notice]) -> float:
        """Return when to send these, in Unix seconds."""
        ...

    async def send(self, owed: Sequence[Notice], now: float) -> str:
        """Send them. Returns why that failed; empty if it succeeded."""
        ...


class _Sender:
    """A channel, and how its last try went."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.failures = 0
        self.retry_at = 0.0
        #: Why it failed; empty if it succeeded.
        self.trouble = ""
        self.wake = asyncio.Event()


class AlertingModule:
    """``round`` is the leader's duty, ``run`` sends in the background, and the handlers list and silence."""

    def __init__(
        self, opened: Iterable[Channel], collect: Collect, clock: Callable[[], float] = time.time, *, has_database: bool = False
    ) -> None:
        """``collect`` returns the text of these families for the whole mesh."""
        self._collect = collect
        self._clock = clock
        self._rules = rules.load()
        self._senders = {channel.name: _Sender(channel) for channel in opened}
        self._window = thresholds.CollectionWindow()
        self._silences = SilenceStore(has_database=has_database)
        self.state = NoticeState()
        #: What is stored, so that it may be sent.
        self._written = NoticeState()
        self._session: Leadership | None = None
        self._leads = self._has_loaded = False
        #: When the leader's state was last read; None if this replica leads.
        self._read_at: float | None = clock()
        # Wait for other nodes to connect before the first look.
        self._due_at = time.monotonic() + EVERY_SECONDS
        #: Called after something was sent, or silenced.
        self.on_change: Callable[[], None] = lambda: None

    def checks(self) -> tuple[Check, ...]:
        return tuple(Check(name, ok=not one.trouble, detail=one.trouble, needed=False) for name, one in self._senders.items())

    # --- the leader -----------------------------------------------------------------------------------------------------

    async def round(self, session: Leadership | None, database: Database | None, *, leads: bool) -> None:
        now = self._clock()
        await self._silences.refresh(database, now)
        if database is not None and (not leads or not self._leads or not self._has_loaded):
            await self._load(database, now, is_leading=leads and self._leads)
        if leads != self._leads:
            self._leads, self._window = leads, thresholds.CollectionWindow()
        if not leads:
            return
        self._read_at = None
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + EVERY_SECONDS
            await self._look()
        # Something may be sent meanwhile.
        state = self.state
        if session is not None and (state != self._written or session is not self._session):
            await leader_state.write(session, State.ALERTS, msgspec.json.encode(state), now)
        self._session, self._written = session, state
        for sender in self._senders.values():
            sender.wake.set()

    async def _load(self, database: Database, now: float, *, is_leading: bool) -> None:
        stored = NoticeState()
        if body := await leader_state.read(database, State.ALERTS):
            stored = msgspec.json.decode(body, type=NoticeState).continued(now)
        if is_leading:  # so far without PostgreSQL
            own = {one.id for one in self.state.active}
            stored = msgspec.structs.replace(stored, active=(*self.state.active, *(one for one in stored.active if one.id not in own)))
        self.state, self._read_at, self._has_loaded = stored, now, True

    async def _look(self) -> None:
        text = await self._collect(thresholds.FAMILIES)
        now = self._clock()
        readings = self._window.take(samples.read_samples(text, thresholds.SERIES), now)
        before = self.state
        self.state = notices.look(before, readings, self._silences.known, rules=self._rules, channels=tuple(self._senders), now=now)
        for one in {*self.state.active, *self.state.ended} - {*before.active, *before.ended}:
            if one.changed_at == now:
                _log.warning("alert" if one.ended is None else "alert resolved", name=one.name, about=dict(one.labels))

    # --- sending --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for sender in self._senders.values():
                tasks.create_task(keep(f"alerts to {sender.channel.name}", partial(self._send, sender)))

    async def _send(self, sender: _Sender) -> None:
        while True:
            sender.wake.clear()
            seconds = await self.deliver(sender.channel.name)
            await wait_until_set(sender.wake, 3600.0 if seconds is None else seconds)

    async def deliver(self, name: str) -> float | None:
        """Send what is due, at least once: that it was sent is stored later. Returns the seconds to wait; None if nothing is owed."""
        sender, now = self._senders[name], self._clock()
        owed = self._owed(name)
        if not owed:
            return None
        due_at = max(sender.channel.due_at(owed), sender.retry_at)
        if due_at > now:
            return due_at - now
        sender.trouble = await sender.channel.send(owed, now)
        if sender.trouble:
            _log.warning("alerts were not sent", to=name, why=sender.trouble)
            sender.failures += 1
            sender.retry_at = now + _BACKOFF.pause(sender.failures)
        else:
            sender.failures = 0
            self.state = self.state.settle(name, owed)
            self.on_change()
        return 0.0

    def _owed(self, channel: str) -> list[Notice]:
        """Return what a leader that has stored it may send now."""
        stored = {one.key for one in self._written.owed(channel)} if self._leads else set()
        return [one for one in self.state.owed(channel) if one.key in stored]

    # --- questions ------------------------------------------------------------------------------------------------------

    @serves(api.list_alerts)
    async def list_alerts(self, request: api.ListAlerts, call: RpcCall) -> api.Alerts:
        active = sorted(self.state.active, key=lambda one: (one.changed_at is None, rules.RANKS[one.severity], one.since))
        is_old = self._read_at is not None and self._clock() - self._read_at > _OLD_SECONDS
        return api.Alerts(
            tuple(map(self._shown, (*active, *self.state.ended))),
            tuple(map(_shown_silence, self._silences.known)),
            as_of=moment_of(self._read_at) if is_old and self._read_at is not None else None,
            watched=tuple(thresholds.FORMATS),
        )

    def _shown(self, one: Notice) -> api.Alert:
        return api.Alert(
            id=one.id,
            name=one.name,
            severity=one.severity,
            labels=dict(one.labels),
            state="over" if one.ended is not None else "pending" if one.changed_at is None else "firing",
            since=moment_of(one.since),
            ended=None if one.ended is None else moment_of(one.ended),
            value=one.value,
            summary=one.summary,
            description=one.description,
            runbook=one.runbook,
            silenced=any(silence.covers(one, self._clock()) for silence in self._silences.known),
            shown=thresholds.FORMATS.get(one.name, "").format(one.value),
        )

    @serves(api.silence_alerts)
    async def silence_alerts(self, request: api.SilenceAlerts, call: RpcCall) -> api.Silence:
        if request.name and request.name not in {rule.name for rule in self._rules}:
            raise errors.BadRequest(f"name: there is no alert named {request.name[:80]!r}", hint="see docs/reference/alerts.md")
        if len(self._silences.known) >= MAX_SILENCES:
            raise errors.BadRequest("there are too many silences", hint="run `aicli alerts` to list them, and end some")
        labels = tuple(sorted((label, value) for label, value in request.labels.items() if value))
        by = silence_store.name_of_caller(call)
        made = Silence(request.name, labels, by, request.why, secrets.token_hex(4), self._clock() + request.seconds)
        await self._silences.add(made)
        self.on_change()
        _log.info("alerts silenced", name=made.name, about=dict(made.labels), by=by, seconds=request.seconds)
        return _shown_silence(made)

    @serves(api.end_silence)
    async def end_silence(self, request: api.EndSilence, call: RpcCall) -> Nothing:
        if not await self._silences.end(request.id):
            raise errors.NotFound(f"there is no silence {request.id[:40]!r}", hint="run `aicli alerts` to list them")
        self.on_change()
        return Nothing()


def _shown_silence(silence: Silence) -> api.Silence:
    return api.Silence(silence.id, silence.name, dict(silence.labels), moment_of(silence.until), silence.by, silence.why)
