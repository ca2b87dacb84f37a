"""Stops a candidate at one gateway by that gateway's own requests, also while PostgreSQL is down."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from services.gateway.facts.model_routes import OpenRollout
from services.gateway.facts.request_record import RequestRow
from services.gateway.rollouts import rollout_evidence, rollout_rules
from services.gateway.rollouts.rollout_evidence import Progress, RequestOutcome
from services.gateway.rollouts.rollout_rules import Rollout
from shared.api.configuration import RolloutState
from shared.config_documents import Sticky

#: Failures of the candidate in a row, from so many tenants or conversations.
ROW: Final = 10
_MIN_SOURCES: Final = 3
#: The baseline's last requests, of which fewer than half may have failed.
_BASELINE: Final = 20
#: How unlikely the evidence of one gateway must be by chance; the gateways together need less.
ALPHA: Final = 0.001
#: Outcomes in one look: of the candidate, or of both if it gets few.
_LOOK: Final = 10
_MAX_LOOK: Final = 1_000

#: Called with the rollout, its route, and why.
StopRollout = Callable[[UUID, str, str], None]


@dataclass(slots=True)
class _Watched:
    """One rollout at this gateway."""

    rollout: Rollout
    failures_in_row: int = 0
    tenants: set[UUID] = field(default_factory=set)
    units: set[bytes] = field(default_factory=set)
    baseline_failures: deque[bool] = field(default_factory=lambda: deque(maxlen=_BASELINE))
    outcomes: list[RequestOutcome] = field(default_factory=list)


class RolloutBrake:
    """``open_rollouts`` returns those of this gateway by route."""

    def __init__(self, open_rollouts: Callable[[], Mapping[str, OpenRollout]], stop: StopRollout) -> None:
        self._open_rollouts = open_rollouts
        self._stop = stop
        self._watched: dict[UUID, _Watched] = {}

    def record_end(self, row: RequestRow, unit: bytes) -> None:
        """Count a request that has ended. ``unit``: see ``ActiveRequest``."""
        used = row.route
        if used is None or not used.is_compared or row.variant_failed is None:
            return
        rollouts = self._open_rollouts()
        rollout = rollouts.get(used.route)
        if rollout is None or used.variant not in {rollout.plan.candidate, rollout.plan.baseline}:
            return
        watched = self._watched.get(rollout.id)
        if watched is None:
            ids = {each.id for each in rollouts.values()}
            self._watched = {known: each for known, each in self._watched.items() if known in ids}
            watched = self._watched[rollout.id] = _Watched(_begin(used.route, rollout, row.created_at))
        reason = _judge(watched, row, unit, is_candidate=used.variant == rollout.plan.candidate)
        if reason:
            self._stop(rollout.id, used.route, reason)
            # Its last requests are still running.
            watched.failures_in_row = 0
            watched.rollout = _begin(used.route, rollout, row.created_at)


def _begin(route: str, rollout: OpenRollout, now: datetime) -> Rollout:
    # Requests are counted alone, because the test for units needs more of them than one gateway has.
    progress = Progress(step_began_at=now, outcome_at=now)
    return Rollout(
        id=rollout.id,
        route=route,
        sticky=Sticky.REQUEST,
        plan=rollout.plan,
        state=RolloutState.RUNNING,
        progress=progress,
        started_at=now,
    )


def _judge(watched: _Watched, row: RequestRow, unit: bytes, *, is_candidate: bool) -> str:
    """Return why the candidate must stop; empty if it need not."""
    failed = bool(row.variant_failed)
    watched.outcomes.append(
        RequestOutcome(
            is_candidate=is_candidate, tenant=row.tenant_id, user=row.user_id, began_at=row.created_at, failed=row.variant_failed
        )
    )
    if not is_candidate:
        watched.baseline_failures.append(failed)
    elif failed:
        watched.failures_in_row += 1
        if len(watched.tenants) < _MIN_SOURCES:
            watched.tenants.add(row.tenant_id)
        if len(watched.units) < _MIN_SOURCES:
            watched.units.add(unit)
    else:
        watched.failures_in_row = 0
        watched.tenants.clear()
        watched.units.clear()
    plan = watched.rollout.plan
    has_sources = max(len(watched.tenants), len(watched.units)) >= _MIN_SOURCES
    if watched.failures_in_row >= ROW and has_sources and 2 * sum(watched.baseline_failures) <= len(watched.baseline_failures):
        return f"{plan.candidate}: the last {watched.failures_in_row} answers failed at one gateway"
    if len(watched.outcomes) < _MAX_LOOK and sum(outcome.is_candidate for outcome in watched.outcomes) < _LOOK:
        return ""
    outcomes, watched.outcomes = watched.outcomes, []
    watched.rollout = replace(watched.rollout, progress=rollout_evidence.record(watched.rollout.progress, plan, Sticky.REQUEST, outcomes))
    violation = rollout_rules.find_violation(plan, watched.rollout.progress, ALPHA)
    return "" if violation is None else f"{rollout_rules.describe_violation(watched.rollout, violation)}, at one gateway"
