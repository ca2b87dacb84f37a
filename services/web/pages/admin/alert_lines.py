"""Alerts and silences as lines: the gravest first, since when, and who looks after it. Pure; the caller brings the clock."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from urllib.parse import quote

from services.web.pages.admin import wording
from shared.api.alerts import Alert, Alerts, Silence

#: severity -> its tone; others have none.
_TONES = {"page": "bad", "critical": "bad", "warning": "warn"}
#: More than anybody reads. The rest is counted, and on the list of `aicli alerts`.
MOST_LINES = 100
_UNITS = ((86_400, "day", "days"), (3_600, "h", "h"), (60, "min", "min"))
_ROOT = "/admin/alerts"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLine:
    """One alert as texts."""

    id: str = ""
    name: str = ""
    severity: str = ""
    tone: str = ""
    #: For how long, up to now or to its end.
    lasted: str = ""
    since: str = ""
    ended: str = ""
    summary: str = ""
    description: str = ""
    labels: str = ""
    value: str = ""
    runbook: str = ""
    #: Who looks after it; empty for nobody.
    seen_by: str = ""
    #: Nobody is told of it: until when, by whose wish and why.
    is_silenced: bool = False
    silenced_until: str = ""
    silenced_by: str = ""
    silenced_why: str = ""
    #: It fires, and nobody looks after it yet.
    is_free: bool = False
    #: Where its forms go, and what they are called for who does not see where they stand.
    acknowledge_path: str = ""
    acknowledge_label: str = ""
    silence_path: str = ""
    silence_label: str = ""
    #: What a silence may cover.
    only_this: str = ""
    all_of_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceLine:
    id: str = ""
    name: str = ""
    labels: str = ""
    until: str = ""
    by: str = ""
    why: str = ""
    end_path: str = ""
    end_label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLines:
    """What the page shows. Its fields are the paths of its events."""

    word: str
    tone: str
    sentence: str
    #: Those that fire.
    now: tuple[AlertLine, ...] = ()
    #: Those whose condition has not held for long enough.
    pending: tuple[AlertLine, ...] = ()
    over: tuple[AlertLine, ...] = ()
    silences: tuple[SilenceLine, ...] = ()
    #: What is left out of the lists, in words.
    more: str = ""
    #: Nobody says what is wrong.
    away: bool = False
    #: The service that knows has said that there is nothing.
    calm: bool = False


UNKNOWN = AlertLines(word="Not known", tone="warn", sentence="Whether something is wrong cannot be read right now.", away=True)


def describe(found: Alerts | None, at: datetime) -> AlertLines:
    if found is None:
        return UNKNOWN
    now = [alert for alert in found.alerts if alert.state == "firing"]
    over = [alert for alert in found.alerts if alert.state == "over"]
    # What a newer service calls otherwise is not lost.
    pending = [alert for alert in found.alerts if alert.state not in ("firing", "over")]
    word, tone, sentence = _verdict(now, len(pending))
    return AlertLines(
        word=word,
        tone=tone,
        sentence=sentence,
        now=tuple(_line(alert, found.silences, at) for alert in now[:MOST_LINES]),
        pending=tuple(_line(alert, found.silences, at) for alert in pending[:MOST_LINES]),
        over=tuple(_over_line(alert, at) for alert in over[:MOST_LINES]),
        silences=tuple(map(_silence_line, found.silences[:MOST_LINES])),
        more=_left_out({"alerts": len(now), "pending": len(pending), "over": len(over), "silences": len(found.silences)}),
        calm=not now and not pending,
    )


def values(lines: AlertLines) -> dict[str, object]:
    """For an event: texts by the paths of the page."""
    return asdict(lines)


def lasting(seconds: float) -> str:
    """In the largest unit that it fills; it changes once a minute at most."""
    for size, one, many in _UNITS:
        if (count := int(seconds // size)) >= 1:
            return f"{count} {one if count == 1 else many}"
    return "less than a minute"


def _verdict(firing: list[Alert], pending: int) -> tuple[str, str, str]:
    """The one word, its tone, and a sentence."""
    if not firing:
        holds = "condition holds" if pending == 1 else "conditions hold"
        return "Nothing is wrong", "good", f"{pending} {holds}, but not for long enough to be an alert." if pending else ""
    word = f"{len(firing)} alert{'s' * (len(firing) != 1)}"
    left = [alert for alert in firing if not alert.silenced and not alert.seen_by]
    if not left:
        return word, "warn", "Somebody looks after each of them, or it is silenced."
    tone = "bad" if any(_TONES.get(alert.severity) == "bad" for alert in left) else "warn"
    return word, tone, f"Nobody looks after {len(left)} of them yet." if len(firing) > 1 else "Nobody looks after it yet."


def _line(alert: Alert, silences: Iterable[Silence], at: datetime) -> AlertLine:
    own = f"{_ROOT}/{quote(alert.id, safe='')}"
    silence = _covering(alert, silences)
    labels = wording.labels(alert.labels)
    return AlertLine(
        id=alert.id,
        name=alert.name,
        severity=alert.severity,
        tone=_TONES.get(alert.severity, "off"),
        lasted=lasting(((alert.ended or at) - alert.since).total_seconds()),
        since=wording.moment(alert.since),
        ended="" if alert.ended is None else wording.moment(alert.ended),
        summary=alert.summary,
        description=alert.description,
        labels=labels or wording.NOTHING,
        value=alert.shown,
        runbook=alert.runbook,
        seen_by=alert.seen_by,
        is_silenced=alert.silenced,
        silenced_until=wording.NOTHING if silence is None else wording.moment(silence.until),
        silenced_by=wording.NOTHING if silence is None else silence.by,
        silenced_why="" if silence is None else silence.why,
        is_free=alert.state == "firing" and not alert.seen_by,
        acknowledge_path=f"{own}/acknowledge",
        acknowledge_label=f"I look after it: {alert.summary}",
        silence_path=f"{own}/silence",
        silence_label=f"Silence: {alert.summary}",
        only_this=f"this one: {labels}" if labels else "this one",
        all_of_name=f"every {alert.name}",
    )


def _over_line(alert: Alert, at: datetime) -> AlertLine:
    # What is over may come again and be over again; each time is a row of its own.
    line = _line(alert, (), at)
    return replace(line, id=f"{alert.id} {alert.ended}")


def _covering(alert: Alert, silences: Iterable[Silence]) -> Silence | None:
    """The one that lasts longest."""
    covering = [one for one in silences if one.name in ("", alert.name) and one.labels.items() <= alert.labels.items()]
    return max(covering, key=lambda one: one.until, default=None)


def _silence_line(silence: Silence) -> SilenceLine:
    name = silence.name or "all alerts"
    return SilenceLine(
        id=silence.id,
        name=name,
        labels=wording.labels(silence.labels) or "everywhere",
        until=wording.moment(silence.until),
        by=silence.by,
        why=silence.why or wording.NOTHING,
        end_path=f"{_ROOT}/silences/{quote(silence.id, safe='')}/end",
        end_label=f"End the silence of {name}",
    )


def _left_out(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count - MOST_LINES:,} {what}" for what, count in counts.items() if count > MOST_LINES)
