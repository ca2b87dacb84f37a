"""Which alerts there are, since when, who has seen them and who wants to hear nothing of them. Pure; the caller brings the clock."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

from services.metrics.alerting.rules import evaluation
from services.metrics.alerting.rules.alert_rule import AlertRule, Severity
from services.metrics.alerting.rules.evaluation import Active, Labels, MetricReadings

#: Alerts that are over stay on the list for a day, the latest of them.
ENDED_SECONDS: Final = 24 * 3600.0
MAX_ENDED: Final = 200
#: One rule that holds for everything would bury the others.
MAX_OF_ONE_RULE: Final = 100
MAX_SILENCES: Final = 100
MAX_SILENCE_SECONDS: Final = 30 * 24 * 3600.0
#: Characters of a label that a silence is for.
MAX_LABEL: Final = 200
#: An alert that nobody has looked at for longer than this began anew, as with Prometheus after a restart.
OUTAGE_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveAlert:
    """One alert, from the moment its condition held first. Times are seconds since 1970."""

    id: str
    rule: AlertRule
    labels: Labels
    since: float
    value: float
    #: Its condition has held for long enough.
    firing: bool
    #: When it was over; None while it lasts.
    ended: float | None = None
    #: Who has seen it, and looks after it; empty for nobody.
    seen_by: str = ""
    #: When they said so.
    seen_at: float | None = None

    @property
    def summary(self) -> str:
        return _filled(self.rule.summary, self.labels)

    @property
    def description(self) -> str:
        return _filled(self.rule.description, self.labels)


@dataclass(frozen=True, slots=True)
class AlertSilence:
    """Alerts of this name with these labels are not told to anybody until then."""

    id: str
    #: Empty for all.
    name: str
    labels: Labels
    until: float
    by: str
    why: str

    def covers(self, alarm: ActiveAlert) -> bool:
        return self.name in ("", alarm.rule.name) and set(self.labels) <= set(alarm.labels)


@dataclass(frozen=True, slots=True)
class AlertNotice:
    """What is to be told: those that began to fire, and those that were told before and are over."""

    began: tuple[ActiveAlert, ...] = ()
    ended: tuple[ActiveAlert, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.began or self.ended)


@dataclass(frozen=True, slots=True)
class StoredAlertState:
    """An alert as it outlives the service."""

    alarm: ActiveAlert
    #: It was handed to those who tell people, and its end was not.
    told: bool
    #: When it was last known that it lasts; of one that is over, its end.
    held_at: float
    #: Names of those who tell people and have not told the last news of it.
    owed: tuple[str, ...] = ()


class AlertStates:
    """One for the service."""

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        # What always fires says that Alertmanager is alive; it is none of ours.
        self._rules = tuple(rule for rule in rules if rule.severity is not Severity.NONE)
        self._active: dict[AlertRule, dict[Labels, Active]] = {rule: {} for rule in self._rules}
        #: The last look; None before the first.
        self.looked_at: float | None = None
        #: Name of an alert -> how many of it found no room at the last look.
        self.crowded: dict[str, int] = {}
        self._alarms: dict[str, ActiveAlert] = {}
        self._ended: list[ActiveAlert] = []
        self._silences: dict[str, AlertSilence] = {}
        #: Those that somebody was told of.
        self._told: set[str] = set()
        #: Those that are over, and whose end nobody was told because nobody looked for long.
        self._owed: list[ActiveAlert] = []
        #: Silences that were ended here, and that PostgreSQL does not know of.
        self._ended_silences: set[str] = set()
        #: Alerts that somebody said here to look after; the same.
        self._acknowledged: dict[str, ActiveAlert] = {}

    # --- what there is ----------------------------------------------------------------------------------------------

    def look(self, readings: MetricReadings, now: float) -> AlertNotice:
        """Evaluate every rule. An alert that fires under a silence is told when that ends, if it still fires."""
        self.looked_at = now
        self.crowded = {}
        before, self._alarms = self._alarms, {}
        for rule in self._rules:
            found = evaluation.advance(rule, readings, self._active[rule], now)
            self._active[rule] = kept = dict(sorted(found.items(), key=lambda item: item[1].since)[:MAX_OF_ONE_RULE])
            if len(found) > len(kept):
                self.crowded[rule.name] = self.crowded.get(rule.name, 0) + len(found) - len(kept)
            for labels, active in kept.items():
                self._note(rule, labels, active, before)
        over = [replace(alarm, ended=now) for key, alarm in before.items() if key not in self._alarms and alarm.firing]
        self._ended = [alarm for alarm in [*over, *self._ended] if now - (alarm.ended or now) < ENDED_SECONDS][:MAX_ENDED]
        return self._news(over, now)

    def _note(self, rule: AlertRule, labels: Labels, active: Active, before: Mapping[str, ActiveAlert]) -> None:
        key = _id(rule, labels)
        known = before.get(key)
        self._alarms[key] = ActiveAlert(
            id=key,
            rule=rule,
            labels=labels,
            since=active.since,
            value=active.value,
            firing=active.firing,
            seen_by="" if known is None else known.seen_by,
            seen_at=None if known is None else known.seen_at,
        )

    def _news(self, over: Sequence[ActiveAlert], now: float) -> AlertNotice:
        self._silences = {key: silence for key, silence in self._silences.items() if silence.until > now}
        began = [alarm for alarm in self.firing() if alarm.id not in self._told and self.silence_of(alarm) is None]
        ended = [alarm for alarm in over if alarm.id in self._told]
        owed, self._owed = self._owed, []
        self._told |= {alarm.id for alarm in began}
        self._told -= {alarm.id for alarm in over}
        return AlertNotice(tuple(began), (*owed, *ended))

    def firing(self) -> list[ActiveAlert]:
        """The gravest first, then the oldest."""
        return sorted((alarm for alarm in self._alarms.values() if alarm.firing), key=lambda one: (_GRAVITY[one.rule.severity], one.since))

    def pending(self) -> list[ActiveAlert]:
        """Those whose condition has not held for long enough."""
        return sorted((alarm for alarm in self._alarms.values() if not alarm.firing), key=lambda one: one.since)

    def ended(self) -> list[ActiveAlert]:
        """The latest first."""
        return list(self._ended)

    # --- what people do ---------------------------------------------------------------------------------------------

    def acknowledge(self, alarm_id: str, by: str, now: float) -> ActiveAlert | None:
        """``by`` looks after it; None where there is no such alert."""
        alarm = self._alarms.get(alarm_id)
        if alarm is None:
            return None
        self._alarms[alarm_id] = self._acknowledged[alarm_id] = seen = replace(alarm, seen_by=by, seen_at=now)
        return seen

    def silence(self, made: AlertSilence) -> bool:
        """False where there are too many. Its id is one that no other replica gives."""
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
        """Those that were ended here, and whose end is not written yet."""
        return frozenset(self._ended_silences)

    def acknowledged(self) -> list[ActiveAlert]:
        """Those that somebody said here to look after, and for whom that is not written yet."""
        return list(self._acknowledged.values())

    def silence_of(self, alarm: ActiveAlert) -> AlertSilence | None:
        return next((silence for silence in self._silences.values() if silence.covers(alarm)), None)

    # --- what outlives the service ----------------------------------------------------------------------------------

    def remembered(self) -> list[StoredAlertState]:
        """All that there is after a look; before the first there is nothing."""
        if self.looked_at is None:
            return []
        lasting = [StoredAlertState(alarm, alarm.id in self._told, self.looked_at) for alarm in self._alarms.values()]
        return [*lasting, *(StoredAlertState(alarm, told=False, held_at=alarm.ended or 0.0) for alarm in self._ended)]

    def show(self, stored: Iterable[StoredAlertState], now: float) -> None:
        """What the leader knows, in place of what there was."""
        self._active = {rule: {} for rule in self._rules}
        self._alarms, self._ended, self._owed, self._told = {}, [], [], set()
        self.looked_at, self.crowded = None, {}
        self.resume(stored, now)

    def resume(self, stored: Iterable[StoredAlertState], now: float) -> None:
        """What the last leader knew, besides what was seen here without it. The next look says whether it still lasts."""
        for one in stored:
            if one.alarm.ended is None and now - one.held_at < OUTAGE_SECONDS:
                self._go_on(one)
            else:
                self._close(one)
        self._ended = sorted(self._ended, key=lambda alarm: alarm.ended or now, reverse=True)[:MAX_ENDED]

    def _go_on(self, one: StoredAlertState) -> None:
        alarm = one.alarm
        mine = self._alarms.get(alarm.id, alarm)
        since = min(mine.since, alarm.since)
        self._alarms[alarm.id] = replace(_seen_last(mine, alarm), since=since)
        self._active[alarm.rule][alarm.labels] = Active(since, mine.value, mine.firing)
        if one.told:
            self._told.add(alarm.id)

    def _close(self, one: StoredAlertState) -> None:
        alarm = one.alarm if one.alarm.ended is not None else replace(one.alarm, ended=one.held_at)
        if alarm.firing:
            self._ended.append(alarm)
        if one.told and one.alarm.ended is None and alarm.id not in self._alarms:
            self._owed.append(alarm)

    def hear(self, stored: Iterable[StoredAlertState]) -> None:
        """Who looks after what, as somebody said at another replica."""
        for one in stored:
            mine = self._alarms.get(one.alarm.id)
            if mine is not None and one.alarm.ended is None:
                self._alarms[mine.id] = _seen_last(mine, one.alarm)

    def hear_silences(self, lasting: Iterable[AlertSilence], ended: Set[str], now: float) -> None:
        """As PostgreSQL has them. One that it does not have stays."""
        self._silences = {key: silence for key, silence in self._silences.items() if silence.until > now and key not in ended}
        for silence in lasting:
            if silence.until > now and silence.id not in self._ended_silences:
                self._silences.setdefault(silence.id, silence)

    def forget_written(self, ended_silences: Set[str], acknowledged: Iterable[ActiveAlert]) -> None:
        """What people did here, as far as it is in PostgreSQL now."""
        self._ended_silences -= ended_silences
        for alarm in acknowledged:
            if self._acknowledged.get(alarm.id) is alarm:
                del self._acknowledged[alarm.id]


def _seen_last(mine: ActiveAlert, other: ActiveAlert) -> ActiveAlert:
    """Mine; who said last that they look after it does."""
    seen = max(mine, other, key=lambda one: one.seen_at or 0.0)
    return replace(mine, seen_by=seen.seen_by, seen_at=seen.seen_at)


_GRAVITY: Final = {severity: place for place, severity in enumerate(Severity)}


def _id(rule: AlertRule, labels: Labels) -> str:
    """The same for as long as the alert lasts, whoever leads."""
    return hashlib.sha256(repr((rule.name, rule.severity, labels)).encode()).hexdigest()[:12]


def _filled(text: str, labels: Labels) -> str:
    for label, value in labels:
        text = text.replace(f"{{{label}}}", value)
    return text
