"""metrics: how numbers of the whole mesh went, for charts."""

from datetime import datetime
from enum import StrEnum

from shared.api.method import Body, Method
from shared.types import Role

#: Of one answer.
MOST_STEPS, MOST_LINES = 1000, 200
MOST_NAMES = 20


class HistoryGrouping(StrEnum):
    """What a line is told apart by; over the others it is summed."""

    SERVICE = "service"
    NODE = "node"
    MODEL = "model"


class GetHistory(Body, frozen=True):
    """A name is a metric's (of a histogram: with _bucket or _sum), with `max:` before it for the highest that was seen, or `p50:`, `p95:`
    and so on before a histogram for that quantile."""

    names: tuple[str, ...]
    since: datetime
    until: datetime
    #: A multiple of 15.
    step_seconds: int = 60
    by: tuple[HistoryGrouping, ...] = ()
    #: Of one machine alone: the id of its node, or at least its first 12 letters. All where it is left out.
    node: str | None = None


class HistoryLine(Body, frozen=True, omit_defaults=False):
    #: As it was asked for.
    name: str
    #: Those of `by`, and those that the metric has besides, such as status or gpu.
    labels: dict[str, str]
    #: One for each step. Of counters per second of the time that was seen, of others the mean; null where nothing is known.
    values: tuple[float | None, ...]


class History(Body, frozen=True, omit_defaults=False):
    #: When the first step begins.
    since: datetime
    step_seconds: int
    #: Seconds between two looks that this is made of: 15, or 60 or 3600 where it was rolled up.
    resolution_seconds: int
    lines: tuple[HistoryLine, ...]


get_history = Method("metrics.getHistory", GetHistory, History, callers={Role.WEB, Role.CLIENT, Role.OPERATOR})
