"""Evaluate the alert rules, and handle the RPC methods to list, acknowledge and silence alerts."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Final

from services.metrics.alerting import sample_window
from services.metrics.alerting.alert_state import MAX_LABEL, MAX_SILENCE_SECONDS, ActiveAlert, AlertSilence, AlertStates, moment_of
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
#: Stored state older than this is shown with its age.
_OLD_SECONDS: Final = 15.0

Text = Callable[[], Awaitable[str]]

_log = logs.get(part="alerts")


class RuleWatch:
    """The handlers, and the evaluation."""

    def __init__(self, text: Text, clock: Callable[[], float] = time.time, attendance: WorkerAttendance | None = None) -> None:
        self.attendance = attendance or WorkerAttendance()
        self._text = text
        self._clock = clock
        self.sample_window = SampleWindow(all_rules.ALL)
        self.alert_states = AlertStates(all_rules.ALL)
        #: When the leader's state was last read; None if this replica leads.
        self.read_at: float | None = None
        #: Set after user actions; AlertPersistence clears it.
        self.changed = asyncio.Event()
        # Wait for other nodes to connect before the first evaluation.
        self._due_at = time.monotonic() + EVERY_SECONDS

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    async def look(self) -> tuple[ActiveAlert, ...]:
        """Evaluate once. Returns the alerts to send."""
        self._due_at = time.monotonic() + EVERY_SECONDS
        text = await self._text()
        now = self._clock()
        self.sample_window.take(chain(sample_window.read_samples(text, self.sample_window.wanted), self.attendance.samples()), now)
        notice = self.alert_states.look(self.sample_window, now)
        for alert in notice.began:
            _log.warning("alert", name=alert.rule.name, severity=alert.rule.severity, about=dict(alert.labels), summary=alert.summary)
        for alert in notice.ended:
            _log.info("alert resolved", name=alert.rule.name, about=dict(alert.labels))
        return (*notice.began, *notice.ended)

    def check(self) -> Check:
        """Check whether series or alerts exceed the limits."""
        lost = self.sample_window.left_out
        found = [f"{lost} series exceed the limit, so alerts about them would be missed"] if lost else []
        found += [f"{more} more {name} alerts are not listed" for name, more in self.alert_states.omitted.items()]
        return Check("alert rules", ok=not found, detail="; ".join(found), needed=False)

    @serves(api.list_alerts)
    async def list_alerts(self, request: api.ListAlerts, call: RpcCall) -> api.Alerts:
        alert_states = self.alert_states
        found = [*alert_states.firing(), *alert_states.pending(), *alert_states.ended()]
        is_old = self.read_at is not None and self._clock() - self.read_at > _OLD_SECONDS
        return api.Alerts(
            tuple(self._shown(alert) for alert in found),
            tuple(map(_shown_silence, alert_states.silences())),
            as_of=moment_of(self.read_at) if is_old and self.read_at is not None else None,
        )

    @serves(api.acknowledge_alert)
    async def acknowledge_alert(self, request: api.AcknowledgeAlert, call: RpcCall) -> api.Alert:
        alert = self.alert_states.acknowledge(request.id, _name_of_caller(call.found), self._clock())
        if alert is None:
            raise errors.NotFound(f"there is no active alert {request.id[:40]!r}", hint="run `aicli alerts` to list them")
        self.changed.set()
        return self._shown(alert)

    @serves(api.silence_alerts)
    async def silence_alerts(self, request: api.SilenceAlerts, call: RpcCall) -> api.Silence:
        if not 0 < request.seconds <= MAX_SILENCE_SECONDS:
            raise errors.BadRequest("seconds: a silence can last up to 30 days", hint="for example, 7200 for two hours")
        if request.name and request.name not in {rule.name for rule in all_rules.ALL}:
            raise errors.BadRequest(f"name: there is no alert named {request.name[:80]!r}", hint="see docs/reference/alerts.md")
        texts = [request.why, *request.labels, *request.labels.values()]
        if len(request.labels) > 10 or any(len(text) > MAX_LABEL for text in texts):
            raise errors.BadRequest(f"labels and why: the limits are 10 labels and {MAX_LABEL} characters each", hint="shorten them")
        until = self._clock() + request.seconds
        made = AlertSilence(secrets.token_hex(4), request.name, labels(**request.labels), until, _name_of_caller(call.found), request.why)
        if not self.alert_states.silence(made):
            raise errors.BadRequest("there are too many silences", hint="run `aicli alerts` to list them, and end some")
        self.changed.set()
        _log.info("alerts silenced", name=made.name, about=dict(made.labels), by=made.by, seconds=request.seconds)
        return _shown_silence(made)

    @serves(api.end_silence)
    async def end_silence(self, request: api.EndSilence, call: RpcCall) -> Nothing:
        if not self.alert_states.end_silence(request.id):
            raise errors.NotFound(f"there is no silence {request.id[:40]!r}", hint="run `aicli alerts` to list them")
        self.changed.set()
        return Nothing()

    def _shown(self, alert: ActiveAlert) -> api.Alert:
        return api.Alert(
            id=alert.id,
            name=alert.rule.name,
            severity=str(alert.rule.severity),
            labels=dict(alert.labels),
            state="over" if alert.ended is not None else "firing" if alert.firing else "pending",
            since=moment_of(alert.since),
            ended=None if alert.ended is None else moment_of(alert.ended),
            value=alert.value,
            shown=alert.rule.shown(alert.value),
            summary=alert.summary,
            description=alert.description,
            runbook=alert.rule.runbook,
            seen_by=alert.seen_by,
            silenced=self.alert_states.silence_of(alert) is not None,
        )


def _shown_silence(silence: AlertSilence) -> api.Silence:
    return api.Silence(silence.id, silence.name, dict(silence.labels), moment_of(silence.until), silence.by, silence.why)


def _name_of_caller(principal: Principal | None) -> str:
    return "operator" if principal is None else principal.username
