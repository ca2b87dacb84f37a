"""Describe alerts and silences for the alerts page. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import quote

from services.web.charts.usage_chart import NOTHING
from services.web.pages.admin import time_texts
from shared.api.alerts import Alert, Alerts, Silence
from shared.lists import alerts as lists
from shared.lists.alerts import SILENCES
from shared.lists.columns import Shown, Tone, pairs

#: The maximum per list; the rest is counted. `aicli alerts list` shows all.
MAX_LINES = 100
_UNITS = ((86_400, "day", "days"), (3_600, "h", "h"), (60, "min", "min"))
_ROOT = "/admin/alerts"
_RUNBOOK = re.compile(r"(?:docs|features/\w+)/runbooks/(\w+)\.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    id: str = ""
    name: str = ""
    severity: str = ""
    tone: str = ""
    #: Its duration until now or its end.
    lasted: str = ""
    since: str = ""
    ended: str = ""
    summary: str = ""
    description: str = ""
    labels: str = ""
    value: str = ""
    runbook: str = ""
    #: Its page here; other runbooks have a path only.
    runbook_page: str = ""
    runbook_path: str = ""
    #: The silence that covers it.
    is_silenced: bool = False
    silenced_until: str = ""
    silenced_by: str = ""
    silenced_why: str = ""
    #: The path of its form and its accessible name.
    silence_path: str = ""
    silence_label: str = ""
    only_this: str = ""
    all_of_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsView:
    """All lists of the page. The field names are the paths of the live values."""

    word: str
    tone: str
    sentence: str
    #: Firing alerts.
    now: tuple[AlertView, ...] = ()
    #: Alerts whose condition has not lasted long enough.
    pending: tuple[AlertView, ...] = ()
    over: tuple[AlertView, ...] = ()
    #: Title of the column in lower case -> text, as well as id, end_path and end_label.
    silences: tuple[Mapping[str, str], ...] = ()
    #: What the lists leave out.
    more: str = ""
    #: Whether the metrics service is down.
    away: bool = False
    #: No alerts, as far as the metrics service knows …
    calm: bool = False
    #: What the metrics service watches.
    watched: str = ""
    #: … or Alertmanager, whose alerts these are.
    calm_there: bool = False


SILENCE_COLUMNS = tuple(column for column in SILENCES.columns if not column.for_commands)
#: For a row that is added later.
BLANK_SILENCE = dict.fromkeys((*(column.title.lower() for column in SILENCE_COLUMNS), "id", "end_path", "end_label"), "")
UNKNOWN = AlertsView(word="Unknown", tone="warn", sentence="Alerts are unavailable right now.", away=True)


def describe(found: Alerts | None, at: datetime) -> AlertsView:
    if found is None:
        return UNKNOWN
    now = [alert for alert in found.alerts if alert.state == "firing"]
    over = [alert for alert in found.alerts if alert.state == "over"]
    # Includes unknown states of a newer service.
    pending = [alert for alert in found.alerts if alert.state not in ("firing", "over")]
    word, tone, sentence = _verdict(now, len(pending))
    is_calm = not now and not pending and found.as_of is None
    if found.as_of is not None:
        tone = "bad" if tone == "bad" else "warn"
        age = lasting((at - found.as_of).total_seconds())
        sentence = f"As of {age} ago: the metrics service cannot read PostgreSQL. {sentence}".rstrip()
    return AlertsView(
        word=word,
        tone=tone,
        sentence=sentence,
        now=tuple(_line(alert, found.silences, at) for alert in now[:MAX_LINES]),
        pending=tuple(_line(alert, found.silences, at) for alert in pending[:MAX_LINES]),
        over=tuple(_over_line(alert, at) for alert in over[:MAX_LINES]),
        silences=tuple(map(_silence_line, found.silences[:MAX_LINES])),
        more=_left_out({"alerts": len(now), "pending": len(pending), "over": len(over), "silences": len(found.silences)}),
        calm=is_calm and not found.from_alertmanager,
        watched=", ".join(found.watched),
        calm_there=is_calm and found.from_alertmanager,
    )


def lasting(seconds: float) -> str:
    """Format a duration in its largest unit, so that it changes at most once a minute."""
    for size, one, many in _UNITS:
        if (count := int(seconds // size)) >= 1:
            return f"{count} {one if count == 1 else many}"
    return "less than a minute"


def _verdict(firing: list[Alert], pending: int) -> tuple[str, str, str]:
    if not firing:
        return "No alerts", "good", f"{pending} pending" if pending else ""
    word = f"{len(firing)} alert{'s' * (len(firing) != 1)}"
    left = [alert for alert in firing if not alert.silenced]
    if not left:
        return word, "warn", "All silenced"
    tone = "bad" if any(lists.tone(alert.severity) is Tone.BAD for alert in left) else "warn"
    return word, tone, f"{len(left)} not silenced"


def _line(alert: Alert, silences: Iterable[Silence], at: datetime) -> AlertView:
    silence = _covering(alert, silences)
    page = _RUNBOOK.fullmatch(alert.runbook)
    labels = ", ".join(pairs(alert.labels))
    return AlertView(
        id=alert.id,
        name=alert.name,
        severity=alert.severity,
        tone=lists.tone(alert.severity),
        lasted=lasting(((alert.ended or at) - alert.since).total_seconds()),
        since=time_texts.moment(alert.since),
        ended="" if alert.ended is None else time_texts.moment(alert.ended),
        summary=alert.summary,
        description=alert.description,
        labels=labels or NOTHING,
        value=alert.shown,
        runbook=page[1] if page else "",
        runbook_page=f"/admin/runbooks/{page[1]}" if page else "",
        runbook_path="" if page else alert.runbook,
        is_silenced=alert.silenced,
        silenced_until=NOTHING if silence is None else time_texts.moment(silence.until),
        silenced_by=NOTHING if silence is None else silence.by,
        silenced_why="" if silence is None else silence.why,
        silence_path=f"{_ROOT}/{quote(alert.id, safe='')}/silence",
        silence_label=f"Silence: {alert.summary}",
        only_this=f"This alert: {labels}" if labels else "This alert",
        all_of_name=f"All {alert.name} alerts",
    )


def _over_line(alert: Alert, at: datetime) -> AlertView:
    # An alert can resolve several times; each time is a separate row.
    line = _line(alert, (), at)
    return replace(line, id=f"{alert.id} {alert.ended}")


def _covering(alert: Alert, silences: Iterable[Silence]) -> Silence | None:
    covering = [one for one in silences if one.name in ("", alert.name) and one.labels.items() <= alert.labels.items()]
    return max(covering, key=lambda one: one.until, default=None)


def _silence_line(silence: Silence) -> Mapping[str, str]:
    cells = {column.title.lower(): _text(column.show(silence)) for column in SILENCE_COLUMNS}
    path = f"{_ROOT}/silences/{quote(silence.id, safe='')}/end"
    return cells | {"id": silence.id, "end_path": path, "end_label": f"End silence: {cells['alert']}"}


def _text(shown: Shown) -> str:
    if isinstance(shown, datetime):
        return time_texts.moment(shown)
    return NOTHING if shown is None else ", ".join(shown) if isinstance(shown, tuple) else str(shown)


def _left_out(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count - MAX_LINES:,} {what}" for what, count in counts.items() if count > MAX_LINES)
