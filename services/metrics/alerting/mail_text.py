"""Write the emails about alerts. Pure. Values from metrics become one short line without URLs, and never a header."""

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote

from services.metrics.alerting.alert_state import MAX_LABEL, ActiveAlert
from services.metrics.alerting.mail_batching import MOST_AN_HOUR, MailBatch
from shared.mail import letters

#: How many firing alerts are described in full, and how many more by name. Emails are read on phones.
MOST_IN_FULL: Final = 10
MOST_NAMED: Final = 40
_LONGEST_SUBJECT_PART: Final = 120
_LONGEST_LINE: Final = 300
#: Longer commands are hard to copy.
_LONGEST_COMMAND: Final = 600


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
    yield f"  {alert.rule.severity}, since {_time(_moment(alert.since))}"
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
        until = "" if alert.ended is None else f" until {_time(_moment(alert.ended))}"
        yield f"- {_short(alert.summary, _LONGEST_LINE)} ({alert.rule.severity}, {_time(_moment(alert.since))}{until})"
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


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _time(at: datetime) -> str:
    return f"{at:%d %B %Y, %H:%M} UTC"
