"""Hold the notices: what exceeds a threshold, since when, and who still has to be told. Pure; the caller supplies the clock."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from services.metrics.alerting.readings import Readings, Threshold
from services.metrics.alerting.rules import AlertRule, Severity, fill
from services.metrics.alerting.thresholds import THRESHOLDS
from services.metrics.history.samples import Labels

#: How long resolved notices stay on the list, and how many of them.
ENDED_SECONDS: Final = 24 * 3600.0
MAX_ENDED: Final = 200
#: Per threshold, so that one cannot bury the others.
MAX_OF_ONE: Final = 100
#: After a longer outage, a condition that did not hold long enough before starts again.
_OUTAGE_SECONDS: Final = 60.0


class Notice(msgspec.Struct, frozen=True):
    """One alert, as it is stored. Times are Unix seconds."""

    #: The same for every leader.
    id: str
    name: str
    severity: Severity
    labels: Labels
    summary: str
    description: str
    #: The path from the repository root.
    runbook: str
    board: str
    since: float
    value: float = 0.0
    #: When it fired or was resolved last; None if it has not held long enough.
    changed_at: float | None = None
    ended: float | None = None
    #: Its start was sent, or is owed.
    is_told: bool = False
    #: The channels that still have to send its last change.
    owed: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, float, bool]:
        return self.id, self.since, self.ended is not None


class Silence(msgspec.Struct, frozen=True):
    #: Empty for all alerts.
    name: str
    labels: Labels
    by: str
    why: str
    #: The columns of its row.
    id: str = ""
    until: float = 0.0

    def covers(self, notice: Notice, now: float) -> bool:
        return self.until > now and self.name in ("", notice.name) and set(self.labels) <= set(notice.labels)


class NoticeState(msgspec.Struct, frozen=True):
    looked_at: float = 0.0
    active: tuple[Notice, ...] = ()
    #: The latest first.
    ended: tuple[Notice, ...] = ()

    def continued(self, now: float) -> "NoticeState":
        """Return what the next leader continues with. Its first look decides what is still active."""
        is_new = now - self.looked_at <= _OUTAGE_SECONDS
        return msgspec.structs.replace(self, active=tuple(one for one in self.active if is_new or one.changed_at is not None))

    def owed(self, channel: str) -> list[Notice]:
        return [one for one in (*self.active, *self.ended) if channel in one.owed]

    def settle(self, channel: str, sent: Iterable[Notice]) -> "NoticeState":
        keys = {one.key for one in sent}

        def settled(one: Notice) -> Notice:
            left = tuple(each for each in one.owed if each != channel)
            return msgspec.structs.replace(one, owed=left) if one.key in keys else one

        return msgspec.structs.replace(self, active=tuple(map(settled, self.active)), ended=tuple(map(settled, self.ended)))


def look(
    state: NoticeState, readings: Readings, silences: Sequence[Silence], *, rules: Sequence[AlertRule], channels: Sequence[str], now: float
) -> NoticeState:
    """Return the state after a look. A silenced notice is sent when the silence ends, if it still fires."""
    before = {one.id: one for one in state.active}
    found: dict[str, Notice] = {}
    for threshold in THRESHOLDS:
        if threshold.counter and threshold.counter.name not in readings.growth:
            found |= {one.id: one for one in state.active if one.name == threshold.name}
        else:
            found |= _look_at(threshold, rules, readings, before, now)
    active = [
        _told(one, channels) if one.changed_at and not any(each.covers(one, now) for each in silences) else one for one in found.values()
    ]
    ended = [
        msgspec.structs.replace(one, changed_at=now, ended=now, owed=tuple(channels) if one.is_told else ())
        for one in state.active
        if one.id not in found and one.changed_at is not None
    ]
    kept = [one for one in state.ended if one.ended is not None and now - one.ended < ENDED_SECONDS]
    return NoticeState(now, tuple(active), tuple([*ended, *kept][:MAX_ENDED]))


def _look_at(
    threshold: Threshold, rules: Sequence[AlertRule], readings: Readings, before: Mapping[str, Notice], now: float
) -> dict[str, Notice]:
    found = {}
    for labels, value in threshold.reached(readings).items():
        rule = next((rule for rule in rules if rule.name == threshold.name and set(rule.labels) <= set(labels)), None)
        if rule is None:
            continue
        key = hashlib.sha256(repr((rule.name, rule.severity, labels)).encode()).hexdigest()[:12]
        known = before.get(key) or _new(key, rule, labels, now)
        changed_at = now if known.changed_at is None and now - known.since >= rule.hold_seconds else known.changed_at
        found[key] = msgspec.structs.replace(known, value=value, changed_at=changed_at)
    oldest = sorted(found.values(), key=lambda one: one.since)[:MAX_OF_ONE]
    return {one.id: one for one in oldest}


def _new(key: str, rule: AlertRule, labels: Labels, now: float) -> Notice:
    summary, description = fill(rule.texts.summary, labels), fill(rule.texts.description, labels)
    return Notice(key, rule.name, rule.severity, labels, summary, description, rule.texts.runbook, rule.texts.board, since=now)


def _told(one: Notice, channels: Sequence[str]) -> Notice:
    return one if one.is_told else msgspec.structs.replace(one, is_told=True, owed=tuple(channels))
