"""Looks at the metrics of the mesh, says what is wrong, and lets people look after it."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import chain
from typing import Final

from services.metrics.alerting import sample_reader
from services.metrics.alerting.alert_state import MAX_LABEL, MAX_SILENCE_SECONDS, ActiveAlert, AlertSilence, AlertStates
from services.metrics.alerting.rules import all_rules
from services.metrics.alerting.rules.evaluation import labels
from services.metrics.alerting.sample_window import SampleWindow
from services.metrics.alerting.worker_attendance import WorkerAttendance
from shared import errors
from shared.api import alerts as api
from shared.api.auth import Principal
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

EVERY_SECONDS: Final = 15.0
#: What was read longer ago than this is shown with its age.
_OLD_SECONDS: Final = 15.0

#: The metrics of the whole mesh as Prometheus text.
Text = Callable[[], Awaitable[str]]

_log = logs.get(part="alerts")


class RuleWatch:
    """Handlers, and the look."""

    def __init__(self, text: Text, clock: Callable[[], float] = time.time, attendance: WorkerAttendance | None = None) -> None:
        """Workers that ``attendance`` misses are gone, whether or not the text says so: it may have been made before they were recalled."""
        self.attendance = attendance or WorkerAttendance()
        self._text = text
        self._clock = clock
        self.book = SampleWindow(all_rules.ALL)
        self.alert_states = AlertStates(all_rules.ALL)
        #: When it was last read what another replica, which leads, knows; None where this one leads.
        self.read_at: float | None = None
        #: Something may be other than it was, for who keeps it to clear.
        self.changed = asyncio.Event()
        # The first look waits until the others have been met: what is not there yet is not missed.
        self._due_at = time.monotonic() + EVERY_SECONDS

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    async def look(self) -> tuple[ActiveAlert, ...]:
        """Once; returns those that are to be told, because they began or are over."""
        self._due_at = time.monotonic() + EVERY_SECONDS
        text = await self._text()
        now = self._clock()
        self.book.take(chain(sample_reader.read(text, self.book.wanted), self.attendance.samples()), now)
        news = self.alert_states.look(self.book, now)
        for alarm in news.began:
            _log.warning("alert", name=alarm.rule.name, severity=alarm.rule.severity, about=dict(alarm.labels), summary=alarm.summary)
        for alarm in news.ended:
            _log.info("alert is over", name=alarm.rule.name, about=dict(alarm.labels))
        return (*news.began, *news.ended)

    def check(self) -> Check:
        """Whether the rules see everything that they look at, and people everything that the rules find."""
        lost = self.book.left_out
        found = [f"{lost} series found no room, so an alert about them would not be seen"] if lost else []
        found += [f"{more} more alerts {name} are not listed: one cause, many nodes" for name, more in self.alert_states.crowded.items()]
        return Check("alert rules", ok=not found, detail="; ".join(found), needed=False)

    # --- handlers ---------------------------------------------------------------------------------------------------

    @serves(api.list_alerts)
    async def list_alerts(self, request: api.ListAlerts, call: RpcCall) -> api.Alerts:
        alert_states = self.alert_states
        found = [*alert_states.firing(), *alert_states.pending(), *alert_states.ended()]
        is_old = self.read_at is not None and self._clock() - self.read_at > _OLD_SECONDS
        return api.Alerts(
            tuple(self._shown(alarm) for alarm in found),
            tuple(map(_shown_silence, alert_states.silences())),
            as_of=_moment(self.read_at) if is_old and self.read_at is not None else None,
        )

    @serves(api.acknowledge_alert)
    async def acknowledge_alert(self, request: api.AcknowledgeAlert, call: RpcCall) -> api.Alert:
        alarm = self.alert_states.acknowledge(request.id, _who(call.found), self._clock())
        if alarm is None:
            raise errors.NotFound(f"there is no alert {request.id[:40]!r} now", hint="`aicli alerts` lists those that there are")
        self.changed.set()
        return self._shown(alarm)

    @serves(api.silence_alerts)
    async def silence_alerts(self, request: api.SilenceAlerts, call: RpcCall) -> api.Silence:
        if not 0 < request.seconds <= MAX_SILENCE_SECONDS:
            raise errors.BadRequest("seconds: a silence lasts up to 30 days", hint="for example 7200 for two hours")
        if request.name and request.name not in {rule.name for rule in all_rules.ALL}:
            raise errors.BadRequest(f"name: there is no alert called {request.name[:80]!r}", hint="docs/reference/alerts.md lists them")
        texts = [request.why, *request.labels, *request.labels.values()]
        if len(request.labels) > 10 or any(len(text) > MAX_LABEL for text in texts):
            raise errors.BadRequest(f"labels and why: at most 10 labels, and {MAX_LABEL} characters each", hint="say it shorter")
        until = self._clock() + request.seconds
        made = AlertSilence(secrets.token_hex(4), request.name, labels(**request.labels), until, _who(call.found), request.why)
        if not self.alert_states.silence(made):
            raise errors.BadRequest("there are too many silences", hint="`aicli alerts` lists them; end some")
        self.changed.set()
        _log.info("alerts silenced", name=made.name, about=dict(made.labels), by=made.by, seconds=request.seconds)
        return _shown_silence(made)

    @serves(api.end_silence)
    async def end_silence(self, request: api.EndSilence, call: RpcCall) -> Nothing:
        if not self.alert_states.end_silence(request.id):
            raise errors.NotFound(f"there is no silence {request.id[:40]!r}", hint="`aicli alerts` lists them")
        self.changed.set()
        return Nothing()

    def _shown(self, alarm: ActiveAlert) -> api.Alert:
        return api.Alert(
            id=alarm.id,
            name=alarm.rule.name,
            severity=str(alarm.rule.severity),
            labels=dict(alarm.labels),
            state="over" if alarm.ended is not None else "firing" if alarm.firing else "pending",
            since=_moment(alarm.since),
            ended=None if alarm.ended is None else _moment(alarm.ended),
            value=alarm.value,
            shown=alarm.rule.shown(alarm.value),
            summary=alarm.summary,
            description=alarm.description,
            runbook=alarm.rule.runbook,
            seen_by=alarm.seen_by,
            silenced=self.alert_states.silence_of(alarm) is not None,
        )


def _shown_silence(silence: AlertSilence) -> api.Silence:
    return api.Silence(silence.id, silence.name, dict(silence.labels), _moment(silence.until), silence.by, silence.why)


def _who(principal: Principal | None) -> str:
    """An operator's node asks for nobody."""
    return "operator" if principal is None else principal.username


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
