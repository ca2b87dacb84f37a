"""Validate a history query, and choose the rows and steps to answer it. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from services.metrics.history import kept_series, rollup
from shared import errors
from shared.api import metrics as api
from shared.api.metrics import GetHistory
from shared.telemetry.instrument import node_label
from shared.types import NodeId

_QUANTILE: Final = re.compile(r"p([1-9][0-9]?)")
_NODE: Final = re.compile(r"[A-Z2-7]{12,56}")
HIGHEST: Final = "max"
MAX_POINTS: Final = api.MAX_STEPS * api.MAX_LINES
_MAX_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """One name of a query."""

    #: The requested name, with its prefix.
    requested: str
    #: The stored name.
    name: str
    quantile: float | None = None
    highest: bool = False

    @property
    def is_divided(self) -> bool:
        """Return whether the response is a rate per second."""
        return kept_series.is_counter(self.name) and self.quantile is None and not self.highest


@dataclass(frozen=True, slots=True)
class QueryPlan:
    wanted: tuple[HistoryRequest, ...]
    since: datetime
    until: datetime
    step_seconds: int
    steps: int
    resolution: int
    node: str | None = None


def read(request: GetHistory, now: datetime, retention: Mapping[int, timedelta]) -> QueryPlan:
    """Plan a query. ``retention`` has the retention of each resolution. Raises BadRequest."""
    since, until = _utc("since", request.since), min(_utc("until", request.until), now)
    step = request.step_seconds
    if step <= 0 or step % rollup.RAW:
        raise errors.BadRequest(f"stepSeconds: {step} is not a multiple of {rollup.RAW}", hint="use 60 for an hour, 900 for a week")
    if since >= until or until - since > timedelta(days=_MAX_DAYS):
        raise errors.BadRequest("since and until: no past time between them", hint="until must be later than since")
    if not 1 <= len(request.names) <= api.MAX_NAMES:
        hint = "such as ai_platform_queue_depth"
        raise errors.BadRequest(f"names: request 1 to {api.MAX_NAMES} names, not {len(request.names)}", hint=hint)
    resolution = choose(since, step, now, retention)
    step = -(-step // resolution) * resolution
    begin = rollup.floor(since, step)
    steps = -int((begin - until) // timedelta(seconds=step))
    if steps > api.MAX_STEPS:
        fitting = -(-(until - since).total_seconds() // (api.MAX_STEPS - 1) // rollup.RAW) * rollup.RAW
        hint = f"request a shorter period, or stepSeconds of at least {int(fitting)}"
        raise errors.BadRequest(f"stepSeconds: the response would have {steps} steps; the limit is {api.MAX_STEPS}", hint=hint)
    return QueryPlan(tuple(_wanted(name) for name in request.names), begin, until, step, steps, resolution, _node(request.node))


def choose(since: datetime, step: int, now: datetime, retention: Mapping[int, timedelta]) -> int:
    """Return the coarsest resolution that divides the step, or a coarser one if those rows are deleted."""
    fitting = [resolution for resolution in sorted(retention, reverse=True) if step % resolution == 0]
    there = [resolution for resolution in fitting if since >= now - retention[resolution]]
    if there:
        return there[0]
    longer = [resolution for resolution in sorted(retention) if since >= now - retention[resolution]]
    return longer[0] if longer else max(retention)


def _wanted(requested: str) -> HistoryRequest:
    how, _, rest = requested.rpartition(":")
    if not how:
        found = HistoryRequest(requested, rest)
    elif how == HIGHEST:
        found = HistoryRequest(requested, rest, highest=True)
    elif share := _QUANTILE.fullmatch(how):
        found = HistoryRequest(requested, f"{rest}_bucket", quantile=int(share[1]) / 100)
    else:
        hint = f"use {HIGHEST}:, a quantile such as p95:, or no prefix"
        raise errors.BadRequest(f"names: {requested[:200]!r} has an unknown prefix", hint=hint)
    if found.name not in kept_series.BY_NAME:
        known = ", ".join(sorted(kept_series.BY_NAME))
        raise errors.BadRequest(f"names: {requested[:200]!r} has no history", hint=f"choose from: {known}")
    return found


def _node(prefix: str | None) -> str | None:
    if prefix is not None and not _NODE.fullmatch(prefix):
        raise errors.BadRequest(
            f"node: {prefix[:60]!r} is not a node ID", hint="use an ID from `aicli nodes`, or at least its first 12 characters"
        )
    return None if prefix is None else node_label(NodeId(prefix))


def _utc(name: str, at: datetime) -> datetime:
    if at.tzinfo is None:
        raise errors.BadRequest(f"{name}: has no time zone", hint="use a format such as 2026-01-31T12:00:00Z")
    return at.astimezone(UTC)
