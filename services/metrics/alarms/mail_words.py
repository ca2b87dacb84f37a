"""What a mail about alerts says. Pure; what comes out of metrics becomes one short line in it, no header, and no address of a page."""

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import quote

from services.metrics.alarms.desk import MAX_LABEL, Alarm
from services.metrics.alarms.mail_rounds import MOST_AN_HOUR, Round
from shared.mail import letters

#: In full, of those that began; then so many by name. A mail is read on a telephone.
MOST_IN_FULL: Final = 10
MOST_NAMED: Final = 40
_LONGEST_SUBJECT_PART: Final = 120
_LONGEST_LINE: Final = 300
#: A command that is longer nobody copies whole.
_LONGEST_COMMAND: Final = 600


class Text(NamedTuple):
    subject: str
    text: str


def written(told: Round, pages: str, now: datetime) -> Text:
    """``pages``: where the web pages are; empty where nobody has said so."""
    return Text(f"aimesh: {_subject(told)}", "\n".join(_lines(told, pages, now)) + "\n")


def _subject(told: Round) -> str:
    gravest = _short((*told.began, *told.ended)[0].summary, _LONGEST_SUBJECT_PART)
    match len(told.began), len(told.ended):
        case 1, 0:
            return gravest
        case 0, 1:
            return f"over: {gravest}"
        case 0, ended:
            return f"{ended} alerts are over, the gravest: {gravest}"
        case began, 0:
            return f"{began} alerts, the gravest: {gravest}"
        case began, ended:
            return f"{_counted(began)}, the gravest: {gravest}; {ended} over"


def _lines(told: Round, pages: str, now: datetime) -> Iterator[str]:
    where = f"{pages.rstrip('/')}/admin/alerts" if pages else "`aicli alerts list`"
    yield f"All alerts, as they are when you look: {where}"
    yield f"As of {_time(now)}."
    yield from _pauses(told, where)
    if told.began:
        yield f"\n{_counted(len(told.began))} began:"
    for alarm in told.began[:MOST_IN_FULL]:
        yield from _in_full(alarm)
    yield from _named(told.began[MOST_IN_FULL:])
    if told.ended:
        yield f"\n{'1 alert is' if len(told.ended) == 1 else f'{len(told.ended)} alerts are'} over:\n"
    yield from _named(told.ended)
    if told.left_out:
        yield f"\n{told.left_out} more, less grave, came meanwhile: {where}"


def _pauses(told: Round, where: str) -> Iterator[str]:
    if told.held_seconds is not None:
        many = f"{len(told)} alerts that began or ended were not told for {_minutes(told.held_seconds)}"
        yield f"\n{many}: {MOST_AN_HOUR} mails had gone out within an hour."
    if told.pause_seconds is not None:
        yield f"\nThis is the last of {MOST_AN_HOUR} mails within an hour. The next comes in {_minutes(told.pause_seconds)} at the"
        yield f"earliest, and tells what came until then. Do not wait for it, look at {where}"


def _in_full(alarm: Alarm) -> Iterator[str]:
    yield f"\n{_short(alarm.summary, _LONGEST_LINE)}"
    yield f"  {alarm.rule.severity}, since {_time(_moment(alarm.since))}"
    yield f"  {_short(alarm.description, _LONGEST_LINE * 2)}"
    if alarm.labels:
        yield f"  about: {', '.join(_short(f'{label}={value}', _LONGEST_LINE) for label, value in alarm.labels)}"
    yield f"  what to do: {alarm.rule.runbook}"
    yield f"  to say that you look after it: {shlex.join(['aicli', 'alerts', 'ack', alarm.id])}"
    yield f"  to silence {'it' if is_typed(alarm) else 'all alerts of this name'} for two hours: {silencing(alarm)}"


def _named(alarms: tuple[Alarm, ...]) -> Iterator[str]:
    if alarms and alarms[0].ended is None:
        yield ""
    for alarm in alarms[:MOST_NAMED]:
        until = "" if alarm.ended is None else f" until {_time(_moment(alarm.ended))}"
        yield f"- {_short(alarm.summary, _LONGEST_LINE)} ({alarm.rule.severity}, {_time(_moment(alarm.since))}{until})"
    if len(alarms) > MOST_NAMED:
        yield f"- and {len(alarms) - MOST_NAMED} more"


def silencing(alarm: Alarm) -> str:
    """As it is typed into a shell; for all alerts of this name where its labels are too much to type."""
    words = ["aicli", "alerts", "silence", alarm.rule.name, "--for", "2h"]
    if alarm.labels and is_typed(alarm):
        words += ["--label", _typed(alarm)]
    return shlex.join(words)


def is_typed(alarm: Alarm) -> bool:
    """Whether a silence takes its labels, and a line of a mail."""
    return all(len(value) <= MAX_LABEL for _, value in alarm.labels) and len(_typed(alarm)) <= _LONGEST_COMMAND


def _typed(alarm: Alarm) -> str:
    """As `aicli alerts silence --label` reads it: what is no letter, digit or one of `_.-~/` as in an address of the web (RFC 3986 §2.1),
    so that it is one word and no link, whatever it says."""
    return ",".join(f"{quote(label)}={quote(value)}" for label, value in alarm.labels)


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
