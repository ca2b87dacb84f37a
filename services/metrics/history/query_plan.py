"""What of the history a question is about: whether it can be answered, from which rows, and in which steps. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from services.metrics.history import kept_series, rollup
from shared import errors
from shared.api import metrics as api
from shared.api.metrics import GetHistory
from shared.telemetry import instruments
from shared.types import NodeId

_QUANTILE: Final = re.compile(r"p([1-9][0-9]?)")
_NODE: Final = re.compile(r"[A-Z2-7]{12,56}")
HIGHEST: Final = "max"
#: By the way that a step has: what a caller can get when all lines have all steps.
MOST_POINTS: Final = api.MOST_STEPS * api.MOST_LINES
#: What the mesh calls forever; a question about the year 9999 is a mistake.
_LONGEST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """One name of a question."""

    #: As it was asked for.
    asked: str
    #: As it is kept.
    name: str
    #: From 0 to 1; None where no quantile is asked for.
    quantile: float | None = None
    highest: bool = False

    @property
    def is_divided(self) -> bool:
        """It is told by the second."""
        return kept_series.is_counter(self.name) and self.quantile is None and not self.highest


@dataclass(frozen=True, slots=True)
class QueryPlan:
    wanted: tuple[HistoryRequest, ...]
    #: The beginning of a step.
    since: datetime
    until: datetime
    step_seconds: int
    steps: int
    resolution: int
    #: As it is kept; None for all.
    node: str | None = None


def read(asked: GetHistory, now: datetime, keeps: Mapping[int, timedelta]) -> QueryPlan:
    """``keeps`` is how long rows of each resolution live. Raises BadRequest."""
    since, until = _utc("since", asked.since), min(_utc("until", asked.until), now)
    step = asked.step_seconds
    if step <= 0 or step % rollup.RAW:
        raise errors.BadRequest(f"stepSeconds: {step} is no multiple of {rollup.RAW}", hint="60 suits an hour, 900 a week")
    if since >= until or until - since > timedelta(days=_LONGEST_DAYS):
        raise errors.BadRequest("since and until: no time that is over is between them", hint="until is the later one")
    if not 1 <= len(asked.names) <= api.MOST_NAMES:
        hint = "such as ai_platform_queue_depth"
        raise errors.BadRequest(f"names: from 1 to {api.MOST_NAMES} of them, not {len(asked.names)}", hint=hint)
    resolution = choose(since, step, now, keeps)
    step = -(-step // resolution) * resolution
    begin = rollup.floor(since, step)
    steps = -int((begin - until) // timedelta(seconds=step))
    if steps > api.MOST_STEPS:
        fitting = -(-(until - since).total_seconds() // (api.MOST_STEPS - 1) // rollup.RAW) * rollup.RAW
        hint = f"ask for less time, or for stepSeconds of at least {int(fitting)}"
        raise errors.BadRequest(f"stepSeconds: that would be {steps} steps, and at most {api.MOST_STEPS} are answered", hint=hint)
    return QueryPlan(tuple(_wanted(name) for name in asked.names), begin, until, step, steps, resolution, _node(asked.node))


def choose(since: datetime, step: int, now: datetime, keeps: Mapping[int, timedelta]) -> int:
    """The rows to read: the longest that fit into the step, or longer ones where those are there no more."""
    fitting = [resolution for resolution in sorted(keeps, reverse=True) if step % resolution == 0]
    there = [resolution for resolution in fitting if since >= now - keeps[resolution]]
    if there:
        return there[0]
    longer = [resolution for resolution in sorted(keeps) if since >= now - keeps[resolution]]
    return longer[0] if longer else max(keeps)


def _wanted(asked: str) -> HistoryRequest:
    how, _, rest = asked.rpartition(":")
    if not how:
        found = HistoryRequest(asked, rest)
    elif how == HIGHEST:
        found = HistoryRequest(asked, rest, highest=True)
    elif share := _QUANTILE.fullmatch(how):
        found = HistoryRequest(asked, f"{rest}_bucket", quantile=int(share[1]) / 100)
    else:
        raise errors.BadRequest(f"names: {asked[:200]!r} begins with neither {HIGHEST}: nor such as p95:", hint="or leave that away")
    if found.name not in kept_series.BY_NAME:
        known = ", ".join(sorted(kept_series.BY_NAME))
        raise errors.BadRequest(f"names: {asked[:200]!r} has no history", hint=f"those that have: {known}")
    return found


def _node(asked: str | None) -> str | None:
    if asked is not None and not _NODE.fullmatch(asked):
        raise errors.BadRequest(
            f"node: {asked[:60]!r} is no node's id", hint="the id that `aicli nodes` shows, or at least 12 letters of it"
        )
    return None if asked is None else instruments.node_label(NodeId(asked))


def _utc(name: str, at: datetime) -> datetime:
    if at.tzinfo is None:
        raise errors.BadRequest(f"{name}: has no time zone", hint="such as 2026-01-31T12:00:00Z")
    return at.astimezone(UTC)
