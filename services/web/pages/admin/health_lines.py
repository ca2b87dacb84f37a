"""The health of the whole as lines: what metrics found out, or what the gateway says where metrics is away. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from services.web.pages.admin import wording
from shared.api.gateway import Check, NodeRow, ServiceHealth
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import Role

#: status -> the one word, its tone, and a sentence.
_VERDICTS = {
    "healthy": ("Healthy", "good", "Every part that an answer needs is there."),
    "degraded": ("Degraded", "warn", "Something is wrong; requests may still be answered. Below is what, and what to do."),
    "down": ("Down", "bad", "A part that every answer needs is not there. Below is which, and what to do."),
}
_NOBODY_SAYS = ("Not known", "warn", "Neither the metrics service nor the gateway answers. To see what runs: aicli stack status.")
_WORDS = {"healthy": ("works", "good"), "degraded": ("degraded", "warn"), "down": ("down", "bad")}
_ORDER = {"down": 0, "degraded": 1, "healthy": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLine:
    """One part as texts."""

    id: str = ""
    name: str = ""
    kind: str = ""
    state: str = ""
    tone: str = ""
    since: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLines:
    word: str
    tone: str
    sentence: str
    #: What metrics says of each part; empty where it is away.
    parts: tuple[PartLine, ...]
    #: What the gateway needs; empty where it is away.
    checks: tuple[PartLine, ...]
    workers: str
    in_flight: str
    models: str
    nodes: str


def describe(whole: SystemHealth | None, gateway: ServiceHealth | None, nodes: Iterable[NodeRow] | None) -> HealthLines:
    status = whole.status if whole is not None else gateway.status if gateway is not None else None
    word, tone, sentence = _NOBODY_SAYS if status is None else _VERDICTS.get(status, (status, "warn", ""))
    rows = None if nodes is None else tuple(nodes)
    workers = None if rows is None else [row for row in rows if row.role is Role.WORKER]
    return HealthLines(
        word=word,
        tone=tone,
        sentence=sentence,
        parts=() if whole is None else tuple(map(_part, sorted(whole.components, key=lambda part: _ORDER.get(part.status, 0)))),
        checks=() if gateway is None else tuple(map(_check, gateway.checks)),
        workers=wording.NOTHING if workers is None else f"{sum(row.usable for row in workers):,} of {len(workers):,}",
        in_flight=wording.NOTHING if gateway is None else f"{gateway.in_flight:,}",
        models=wording.NOTHING if gateway is None else f"{len(gateway.models):,}",
        nodes=wording.NOTHING if rows is None else f"{sum(row.usable for row in rows):,} of {len(rows):,}",
    )


def values(lines: HealthLines) -> dict[str, object]:
    """For an event: texts by the paths of the page."""
    plain = asdict(lines)
    return {**plain, "no_parts": not lines.parts, "no_checks": not lines.checks}


def _part(part: ComponentHealth) -> PartLine:
    state, tone = _WORDS.get(part.status, (part.status, "warn"))
    return PartLine(
        id=f"{part.kind} {part.name}",
        name=part.name,
        kind=part.kind,
        state=state,
        tone=tone,
        since=wording.moment(part.since),
        why=part.detail,
    )


def _check(check: Check) -> PartLine:
    state, tone = ("there", "good") if check.ok else ("missing", "bad")
    return PartLine(id=check.name, name=check.name, state=state, tone=tone, why=check.detail)
