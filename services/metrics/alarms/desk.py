"""Which alerts there are, since when, who has seen them and who wants to hear nothing of them. Pure; the caller brings the clock."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.metrics.alerts import evaluating
from services.metrics.alerts.evaluating import Active, Labels, Readings
from services.metrics.alerts.rule import Rule, Severity

#: Alerts that are over stay on the list for a day, the latest of them.
ENDED_SECONDS: Final = 24 * 3600.0
MAX_ENDED: Final = 200
#: One rule that holds for everything would bury the others.
MAX_OF_ONE_RULE: Final = 100
MAX_SILENCES: Final = 100
MAX_SILENCE_SECONDS: Final = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alert, from the moment its condition held first. Times are seconds since 1970."""

    id: str
    rule: Rule
    labels: Labels
    since: float
    value: float
    #: Its condition has held for long enough.
    firing: bool
    #: When it was over; None while it lasts.
    ended: float | None = None
    #: Who has seen it, and looks after it; empty for nobody.
    seen_by: str = ""

    @property
    def summary(self) -> str:
        return _filled(self.rule.summary, self.labels)

    @property
    def description(self) -> str:
        return _filled(self.rule.description, self.labels)


@dataclass(frozen=True, slots=True)
class Silence:
    """Alerts of this name with these labels are not told to anybody until then."""

    id: str
    #: Empty for all.
    name: str
    labels: Labels
    until: float
    by: str
    why: str

    def covers(self, alarm: Alarm) -> bool:
        return self.name in ("", alarm.rule.name) and set(self.labels) <= set(alarm.labels)


@dataclass(frozen=True, slots=True)
class News:
    """What is to be told: those that began to fire, and those that were told before and are over."""

    began: tuple[Alarm, ...] = ()
    ended: tuple[Alarm, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.began or self.ended)


class Desk:
    """One for the service."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        # What always fires says that Alertmanager is alive; it is none of ours.
        self._rules = tuple(rule for rule in rules if rule.severity is not Severity.NONE)
        self._active: dict[Rule, dict[Labels, Active]] = {rule: {} for rule in self._rules}
        self._alarms: dict[str, Alarm] = {}
        self._ended: list[Alarm] = []
        self._silences: dict[str, Silence] = {}
        #: Those that somebody was told of.
        self._told: set[str] = set()
        self._numbers = 0

    # --- what there is ----------------------------------------------------------------------------------------------

    def look(self, readings: Readings, now: float) -> News:
        """Evaluate every rule. An alert that fires under a silence is told when that ends, if it still fires."""
        before, self._alarms = self._alarms, {}
        for rule in self._rules:
            found = evaluating.advance(rule, readings, self._active[rule], now)
            self._active[rule] = kept = dict(sorted(found.items(), key=lambda item: item[1].since)[:MAX_OF_ONE_RULE])
            for labels, active in kept.items():
                self._note(rule, labels, active, before)
        over = [replace(alarm, ended=now) for key, alarm in before.items() if key not in self._alarms and alarm.firing]
        self._ended = [alarm for alarm in [*over, *self._ended] if now - (alarm.ended or now) < ENDED_SECONDS][:MAX_ENDED]
        return self._news(over, now)

    def _note(self, rule: Rule, labels: Labels, active: Active, before: Mapping[str, Alarm]) -> None:
        key = _id(rule, labels)
        known = before.get(key)
        self._alarms[key] = Alarm(
            id=key,
            rule=rule,
            labels=labels,
            since=active.since,
            value=active.value,
            firing=active.firing,
            seen_by="" if known is None else known.seen_by,
        )

    def _news(self, over: Sequence[Alarm], now: float) -> News:
        self._silences = {key: silence for key, silence in self._silences.items() if silence.until > now}
        began = [alarm for alarm in self.firing() if alarm.id not in self._told and self.silence_of(alarm) is None]
        ended = [alarm for alarm in over if alarm.id in self._told]
        self._told |= {alarm.id for alarm in began}
        self._told -= {alarm.id for alarm in over}
        return News(tuple(began), tuple(ended))

    def firing(self) -> list[Alarm]:
        """The gravest first, then the oldest."""
        return sorted((alarm for alarm in self._alarms.values() if alarm.firing), key=lambda one: (_GRAVITY[one.rule.severity], one.since))

    def pending(self) -> list[Alarm]:
        """Those whose condition has not held for long enough."""
        return sorted((alarm for alarm in self._alarms.values() if not alarm.firing), key=lambda one: one.since)

    def ended(self) -> list[Alarm]:
        """The latest first."""
        return list(self._ended)

    # --- what people do ---------------------------------------------------------------------------------------------

    def acknowledge(self, alarm_id: str, by: str) -> Alarm | None:
        """``by`` looks after it; None where there is no such alert."""
        alarm = self._alarms.get(alarm_id)
        if alarm is None:
            return None
        self._alarms[alarm_id] = seen = replace(alarm, seen_by=by)
        return seen

    def silence(self, name: str, labels: Labels, *, until: float, by: str, why: str) -> Silence | None:
        """None where there are too many."""
        if len(self._silences) >= MAX_SILENCES:
            return None
        self._numbers += 1
        made = Silence(f"{self._numbers:04d}", name, labels, until, by, why)
        self._silences[made.id] = made
        return made

    def end_silence(self, silence_id: str) -> bool:
        return self._silences.pop(silence_id, None) is not None

    def silences(self) -> list[Silence]:
        return list(self._silences.values())

    def silence_of(self, alarm: Alarm) -> Silence | None:
        return next((silence for silence in self._silences.values() if silence.covers(alarm)), None)


_GRAVITY: Final = {severity: place for place, severity in enumerate(Severity)}


def _id(rule: Rule, labels: Labels) -> str:
    """The same for as long as the alert lasts, on every replica."""
    return hashlib.sha256(repr((rule.name, rule.severity, labels)).encode()).hexdigest()[:12]


def _filled(text: str, labels: Labels) -> str:
    for label, value in labels:
        text = text.replace(f"{{{label}}}", value)
    return text
