"""Decide when to send an email about alerts and which alerts it has, and write it. Pure; the caller supplies the clocks.

Values from metrics become one short line without URLs, and never a header.
"""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from urllib.parse import quote

from services.metrics.alerting.alert_state import MAX_LABEL, ActiveAlert, AlertNotice, moment_of
from services.metrics.alerting.rules.alert_rule import RANKS, Severity
from shared.mail import letters

#: How long less severe and resolved alerts wait for others, to share an email.
GATHER_SECONDS: Final = 180.0
#: Nobody reads an email per minute.
MOST_AN_HOUR: Final = 20
#: The most severe alerts are queued; the rest are counted.
MOST_WAITING: Final = 500
_HOUR_SECONDS: Final = 3600.0
#: How many firing alerts are described in full, and how many more by name. Emails are read on phones.
MOST_IN_FULL: Final = 10
MOST_NAMED: Final = 40
_LONGEST_SUBJECT_PART: Final = 120
_LONGEST_LINE: Final = 300
#: Longer commands are hard to copy.
_LONGEST_COMMAND: Final = 600

_AT_ONCE: Final = (Severity.PAGE, Severity.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailBatch:
    """The content of one email, most severe first."""

    began: tuple[ActiveAlert, ...]
    ended: tuple[ActiveAlert, ...]
    #: How many further alerts are only counted.
    left_out: int = 0
    #: How long the hourly limit delayed it; None without a delay.
    held_seconds: float | None = None
    #: If it is the last that the hourly limit allows: the pause until the next.
    pause_seconds: float | None = None

    def __len__(self) -> int:
        return len(self.began) + len(self.ended) + self.left_out


class MailBatching:
    def __init__(self) -> None:
        self._waiting: dict[str, ActiveAlert] = {}
        self._left_out = 0
        #: When to send the next email; None if nothing is queued.
        self._due_at: float | None = None
        self._sent: list[float] = []
        self._pause_until = float("-inf")

    def __len__(self) -> int:
        """Return the number of unsent alerts."""
        return len(self._waiting) + self._left_out

    def note(self, notice: AlertNotice, now: float) -> None:
        for alert in (*notice.began, *notice.ended):
            self._waiting[alert.id] = alert
        gravest = sorted(self._waiting.values(), key=_rank)
        for alert in gravest[MOST_WAITING:]:
            del self._waiting[alert.id]
            self._left_out += 1
        if notice:
            is_urgent = any(alert.rule.severity in _AT_ONCE for alert in notice.began)
            due_at = now if is_urgent else now + GATHER_SECONDS
            self._due_at = due_at if self._due_at is None else min(self._due_at, due_at)

    def seconds_to_wait(self, now: float) -> float | None:
        """Return the time until the next email; None if nothing is queued."""
        return None if self._due_at is None else max(0.0, max(self._due_at, self._room_at(now)) - now)

    def take_due(self, now: float) -> MailBatch | None:
        """Return the email to send now, or None. It then counts as sent."""
        due_at = self._due_at
        if due_at is None or due_at > now or self._room_at(now) > now:
            return None
        self._sent.append(now)
        made = MailBatch(
            began=_sorted(alert for alert in self._waiting.values() if alert.ended is None),
            ended=_sorted(alert for alert in self._waiting.values() if alert.ended is not None),
            left_out=self._left_out,
            held_seconds=now - due_at if due_at < self._pause_until else None,
            pause_seconds=self._room_at(now) - now if len(self._sent) >= MOST_AN_HOUR else None,
        )
        self._pause_until = self._room_at(now)
        self._waiting, self._left_out, self._due_at = {}, 0, None
        return made

    def _room_at(self, now: float) -> float:
        self._sent = [at for at in self._sent if now - at < _HOUR_SECONDS]
        return self._sent[-MOST_AN_HOUR] + _HOUR_SECONDS if len(self._sent) >= MOST_AN_HOUR else now


def _sorted(alerts: Iterable[ActiveAlert]) -> tuple[ActiveAlert, ...]:
    return tuple(sorted(alerts, key=_rank))


def _rank(alert: ActiveAlert) -> tuple[bool, int, float]:
    return alert.ended is not None, RANKS[alert.rule.severity], alert.since


class MailText(NamedTuple):
    subject: str
    text: str


def written(batch: MailBatch, pages: str, now: datetime) -> MailText:
    """Write an email. ``pages`` is the URL of the web pages; empty if none is set."""
    return MailText(f"aimesh: {_subject(batch)}", "\n".join(_lines(batch, pages, now)) + "\n")


def _subject(batch: MailBatch) -> str:
    worst = _short((*batch.began, *batch.ended)[0].summary, _LONGEST_SUBJECT_PART)
    match len(batch.began), len(batch.ended):
        case 1, 0:
            return worst
        case 0, 1:
            return f"Resolved: {worst}"
        case 0, ended:
            return f"{ended} alerts resolved, including: {worst}"
        case began, 0:
            return f"{began} alerts firing, including: {worst}"
        case began, ended:
            return f"{_counted(began)} firing, including: {worst}; {ended} resolved"


def _lines(batch: MailBatch, pages: str, now: datetime) -> Iterator[str]:
    where = f"{pages.rstrip('/')}/admin/alerts" if pages else "`aicli alerts list`"
    yield f"Current alerts: {where}"
    yield f"As of {_time(now)}."
    yield from _pauses(batch, where)
    if batch.began:
        yield f"\n{_counted(len(batch.began))} firing:"
    for alert in batch.began[:MOST_IN_FULL]:
        yield from _in_full(alert)
    yield from _named(batch.began[MOST_IN_FULL:])
    if batch.ended:
        yield f"\n{_counted(len(batch.ended))} resolved:\n"
    yield from _named(batch.ended)
    if batch.left_out:
        yield f"\n{batch.left_out} more with lower severity: {where}"


def _pauses(batch: MailBatch, where: str) -> Iterator[str]:
    if batch.held_seconds is not None:
        many = f"{len(batch)} alerts were held back for {_minutes(batch.held_seconds)}"
        yield f"\n{many}, because {MOST_AN_HOUR} emails were sent within an hour."
    if batch.pause_seconds is not None:
        yield f"\nThis is the last of {MOST_AN_HOUR} emails in this hour. The next one comes in {_minutes(batch.pause_seconds)} at the"
        yield f"earliest. Until then, check {where}"


def _in_full(alert: ActiveAlert) -> Iterator[str]:
    yield f"\n{_short(alert.summary, _LONGEST_LINE)}"
    yield f"  {alert.rule.severity}, since {_time(moment_of(alert.since))}"
    yield f"  {_short(alert.description, _LONGEST_LINE * 2)}"
    if alert.labels:
        yield f"  labels: {', '.join(_short(f'{label}={value}', _LONGEST_LINE) for label, value in alert.labels)}"
    yield f"  runbook: {alert.rule.runbook}"
    yield f"  acknowledge: {shlex.join(['aicli', 'alerts', 'ack', alert.id])}"
    yield f"  silence {'it' if is_typed(alert) else 'all alerts of this name'} for 2 hours: {silencing(alert)}"


def _named(alerts: tuple[ActiveAlert, ...]) -> Iterator[str]:
    if alerts and alerts[0].ended is None:
        yield ""
    for alert in alerts[:MOST_NAMED]:
        until = "" if alert.ended is None else f" until {_time(moment_of(alert.ended))}"
        yield f"- {_short(alert.summary, _LONGEST_LINE)} ({alert.rule.severity}, {_time(moment_of(alert.since))}{until})"
    if len(alerts) > MOST_NAMED:
        yield f"- and {len(alerts) - MOST_NAMED} more"


def silencing(alert: ActiveAlert) -> str:
    """Return the shell command to silence an alert, or all alerts of its name if its labels are too long."""
    words = ["aicli", "alerts", "silence", alert.rule.name, "--for", "2h"]
    if alert.labels and is_typed(alert):
        words += ["--label", _typed(alert)]
    return shlex.join(words)


def is_typed(alert: ActiveAlert) -> bool:
    """Return whether its labels fit a silence and a line of an email."""
    return all(len(value) <= MAX_LABEL for _, value in alert.labels) and len(_typed(alert)) <= _LONGEST_COMMAND


def _typed(alert: ActiveAlert) -> str:
    """Encode labels for `aicli alerts silence --label`. Percent-encoding (RFC 3986 §2.1) keeps any value one word and prevents links."""
    return ",".join(f"{quote(label)}={quote(value)}" for label, value in alert.labels)


def _counted(alerts: int) -> str:
    return "1 alert" if alerts == 1 else f"{alerts} alerts"


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return "1 minute" if minutes == 1 else f"{minutes} minutes"


def _short(text: str, longest: int) -> str:
    return letters.one_line(text, longest)


def _time(at: datetime) -> str:
    return f"{at:%d %B %Y, %H:%M} UTC"
