"""Hold the state of alerts, acknowledgements and silences. Pure; the caller supplies the clock."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from services.metrics.alerting.rules import evaluation
from services.metrics.alerting.rules.alert_rule import RANKS, AlertRule, Severity
from services.metrics.alerting.rules.evaluation import Active, Labels, MetricReadings

#: How long resolved alerts stay on the list, and how many of them.
ENDED_SECONDS: Final = 24 * 3600.0
MAX_ENDED: Final = 200
#: Per rule, so that one rule cannot bury the others.
MAX_OF_ONE_RULE: Final = 100
MAX_SILENCES: Final = 100
MAX_SILENCE_SECONDS: Final = 30 * 24 * 3600.0
#: The maximum length of a label value in a silence.
MAX_LABEL: Final = 200
#: An alert that was not evaluated for longer than this starts again, as with Prometheus after a restart.
OUTAGE_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveAlert:
    """One alert. Times are Unix seconds."""

    id: str
    rule: AlertRule
    labels: Labels
    since: float
    value: float
    firing: bool
    ended: float | None = None
    seen_by: str = ""
    seen_at: float | None = None

    @property
    def summary(self) -> str:
        return _filled(self.rule.summary, self.labels)

    @property
    def description(self) -> str:
        return _filled(self.rule.description, self.labels)


@dataclass(frozen=True, slots=True)
class AlertSilence:
    """Suppresses notifications of alerts with this name and these labels."""

    id: str
    #: Empty for all alerts.
    name: str
    labels: Labels
    until: float
    by: str
    why: str

    def covers(self, alert: ActiveAlert) -> bool:
        return self.name in ("", alert.rule.name) and set(self.labels) <= set(alert.labels)


@dataclass(frozen=True, slots=True)
class AlertNotice:
    """Alerts to send: those that started to fire, and sent ones that were resolved."""

    began: tuple[ActiveAlert, ...] = ()
    ended: tuple[ActiveAlert, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.began or self.ended)


@dataclass(frozen=True, slots=True)
class StoredAlertState:
    """An alert as PostgreSQL stores it."""

    alert: ActiveAlert
    #: Whether its start was sent and its end was not.
    notified: bool
    #: When it was last known to be active; if resolved, its end.
    held_at: float
    #: The channels that still have to send its latest change.
    owed: tuple[str, ...] = ()


class AlertStates:
    """The alerts of this replica."""

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        # The watchdog always fires, to show that Alertmanager works; leave it out.
        self._rules = tuple(rule for rule in rules if rule.severity is not Severity.NONE)
        self._active: dict[AlertRule, dict[Labels, Active]] = {rule: {} for rule in self._rules}
        self.looked_at: float | None = None
        #: Alert name -> how many exceeded the limit at the last evaluation.
        self.omitted: dict[str, int] = {}
        self._alerts: dict[str, ActiveAlert] = {}
        self._ended: list[ActiveAlert] = []
        self._silences: dict[str, AlertSilence] = {}
        self._notified: set[str] = set()
        #: Alerts that were resolved during an outage, so that their end was not sent.
        self._owed: list[ActiveAlert] = []
        #: Silences ended here, but not yet in PostgreSQL.
        self._ended_silences: set[str] = set()
        #: Alerts acknowledged here, but not yet in PostgreSQL.
        self._acknowledged: dict[str, ActiveAlert] = {}

    def look(self, readings: MetricReadings, now: float) -> AlertNotice:
        """Evaluate every rule. A silenced alert is sent when the silence ends, if it still fires."""
        self.looked_at = now
        self.omitted = {}
        before, self._alerts = self._alerts, {}
        for rule in self._rules:
            found = evaluation.advance(rule, readings, self._active[rule], now)
            self._active[rule] = kept = dict(sorted(found.items(), key=lambda item: item[1].since)[:MAX_OF_ONE_RULE])
            if len(found) > len(kept):
                self.omitted[rule.name] = self.omitted.get(rule.name, 0) + len(found) - len(kept)
            for labels, active in kept.items():
                self._note(rule, labels, active, before)
        over = [replace(alert, ended=now) for key, alert in before.items() if key not in self._alerts and alert.firing]
        self._ended = [alert for alert in [*over, *self._ended] if now - (alert.ended or now) < ENDED_SECONDS][:MAX_ENDED]
        return self._notice(over, now)

    def _note(self, rule: AlertRule, labels: Labels, active: Active, before: Mapping[str, ActiveAlert]) -> None:
        key = _id(rule, labels)
        known = before.get(key)
        self._alerts[key] = ActiveAlert(
            id=key,
            rule=rule,
            labels=labels,
            since=active.since,
            value=active.value,
            firing=active.firing,
            seen_by="" if known is None else known.seen_by,
            seen_at=None if known is None else known.seen_at,
        )

    def _notice(self, over: Sequence[ActiveAlert], now: float) -> AlertNotice:
        self._silences = {key: silence for key, silence in self._silences.items() if silence.until > now}
        began = [alert for alert in self.firing() if alert.id not in self._notified and self.silence_of(alert) is None]
        ended = [alert for alert in over if alert.id in self._notified]
        owed, self._owed = self._owed, []
        self._notified |= {alert.id for alert in began}
        self._notified -= {alert.id for alert in over}
        return AlertNotice(tuple(began), (*owed, *ended))

    def firing(self) -> list[ActiveAlert]:
        """Return firing alerts by severity, then by age."""
        return sorted((alert for alert in self._alerts.values() if alert.firing), key=lambda one: (RANKS[one.rule.severity], one.since))

    def pending(self) -> list[ActiveAlert]:
        return sorted((alert for alert in self._alerts.values() if not alert.firing), key=lambda one: one.since)

    def ended(self) -> list[ActiveAlert]:
        """Return resolved alerts, latest first."""
        return list(self._ended)

    def acknowledge(self, alert_id: str, by: str, now: float) -> ActiveAlert | None:
        """Acknowledge an alert; None if it does not exist."""
        alert = self._alerts.get(alert_id)
        if alert is None:
            return None
        self._alerts[alert_id] = self._acknowledged[alert_id] = seen = replace(alert, seen_by=by, seen_at=now)
        return seen

    def silence(self, made: AlertSilence) -> bool:
        """Add a silence with a globally unique id. Returns False if there are too many."""
        if len(self._silences) >= MAX_SILENCES:
            return False
        self._silences[made.id] = made
        return True

    def end_silence(self, silence_id: str) -> bool:
        if self._silences.pop(silence_id, None) is None:
            return False
        self._ended_silences.add(silence_id)
        return True

    def silences(self) -> list[AlertSilence]:
        return list(self._silences.values())

    def ended_silences(self) -> frozenset[str]:
        """Return silences ended here, but not yet in PostgreSQL."""
        return frozenset(self._ended_silences)

    def acknowledged(self) -> list[ActiveAlert]:
        """Return alerts acknowledged here, but not yet in PostgreSQL."""
        return list(self._acknowledged.values())

    def silence_of(self, alert: ActiveAlert) -> AlertSilence | None:
        return next((silence for silence in self._silences.values() if silence.covers(alert)), None)

    def remembered(self) -> list[StoredAlertState]:
        """Return the state to store; empty before the first evaluation."""
        if self.looked_at is None:
            return []
        lasting = [StoredAlertState(alert, alert.id in self._notified, self.looked_at) for alert in self._alerts.values()]
        return [*lasting, *(StoredAlertState(alert, notified=False, held_at=alert.ended or 0.0) for alert in self._ended)]

    def show(self, stored: Iterable[StoredAlertState], now: float) -> None:
        """Replace the state by the leader's."""
        self._active = {rule: {} for rule in self._rules}
        self._alerts, self._ended, self._owed, self._notified = {}, [], [], set()
        self.looked_at, self.omitted = None, {}
        self.resume(stored, now)

    def resume(self, stored: Iterable[StoredAlertState], now: float) -> None:
        """Add the last leader's state to this one. The next evaluation decides whether alerts are still active."""
        for one in stored:
            if one.alert.ended is None and now - one.held_at < OUTAGE_SECONDS:
                self._continue(one)
            else:
                self._close(one)
        self._ended = sorted(self._ended, key=lambda alert: alert.ended or now, reverse=True)[:MAX_ENDED]

    def _continue(self, one: StoredAlertState) -> None:
        alert = one.alert
        mine = self._alerts.get(alert.id, alert)
        since = min(mine.since, alert.since)
        self._alerts[alert.id] = replace(_seen_last(mine, alert), since=since)
        self._active[alert.rule][alert.labels] = Active(since, mine.value, mine.firing)
        if one.notified:
            self._notified.add(alert.id)

    def _close(self, one: StoredAlertState) -> None:
        alert = one.alert if one.alert.ended is not None else replace(one.alert, ended=one.held_at)
        if alert.firing:
            self._ended.append(alert)
        if one.notified and one.alert.ended is None and alert.id not in self._alerts:
            self._owed.append(alert)

    def merge_acknowledgements(self, stored: Iterable[StoredAlertState]) -> None:
        """Take over acknowledgements from other replicas."""
        for one in stored:
            mine = self._alerts.get(one.alert.id)
            if mine is not None and one.alert.ended is None:
                self._alerts[mine.id] = _seen_last(mine, one.alert)

    def merge_silences(self, lasting: Iterable[AlertSilence], ended: Set[str], now: float) -> None:
        """Take over silences from PostgreSQL. Keeps those that it does not have."""
        self._silences = {key: silence for key, silence in self._silences.items() if silence.until > now and key not in ended}
        for silence in lasting:
            if silence.until > now and silence.id not in self._ended_silences:
                self._silences.setdefault(silence.id, silence)

    def forget_written(self, ended_silences: Set[str], acknowledged: Iterable[ActiveAlert]) -> None:
        """Forget user actions that are now in PostgreSQL."""
        self._ended_silences -= ended_silences
        for alert in acknowledged:
            if self._acknowledged.get(alert.id) is alert:
                del self._acknowledged[alert.id]


def _seen_last(mine: ActiveAlert, other: ActiveAlert) -> ActiveAlert:
    seen = max(mine, other, key=lambda one: one.seen_at or 0.0)
    return replace(mine, seen_by=seen.seen_by, seen_at=seen.seen_at)


def _id(rule: AlertRule, labels: Labels) -> str:
    """Return an id that is stable across leaders."""
    return hashlib.sha256(repr((rule.name, rule.severity, labels)).encode()).hexdigest()[:12]


def _filled(text: str, labels: Labels) -> str:
    for label, value in labels:
        text = text.replace(f"{{{label}}}", value)
    return text


def moment_of(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
