"""Decides when a rollout's candidate gets more, and when it is rolled back. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.gateway.rollouts import rollout_evidence
from services.gateway.rollouts.rollout_evidence import BY_UNIT, ConditionState, Guard, Progress, RequestOutcome
from shared import amounts
from shared.api.configuration import OPEN_STATES, RolloutPlan, RolloutState
from shared.config_documents import Sticky
from shared.types import MicroCredits

#: The probability of rolling back a candidate that is as good as the baseline, over all conditions.
ALPHA: Final = 0.01
SILENT_SECONDS: Final = 15.0
_POINT: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    id: UUID
    route: str
    #: As the route was at its start.
    sticky: Sticky
    plan: RolloutPlan
    state: RolloutState
    progress: Progress
    #: Why it has its state.
    reason: str = ""
    started_at: datetime
    ended_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def share(self) -> float:
        """Return the percentage of the baseline's units that the candidate has."""
        return self.plan.steps[self.progress.step] if self.is_open else 0.0


def find_violation(plan: RolloutPlan, progress: Progress, alpha: float = ALPHA) -> ConditionState | None:
    """Return the condition that is violated beyond doubt."""
    judged = sum(rollout_evidence.margin(plan, guard) is not None for guard in Guard)
    enough = math.log(max(judged, 1) / alpha)
    return next((state for state in rollout_evidence.conditions(plan, progress) if state.exceeds and state.log_evidence >= enough), None)


_BAD = {Guard.ERRORS: "answers failed", Guard.THUMBS: "thumbs were down"}


def describe_violation(rollout: Rollout, state: ConditionState) -> str:
    """Return one sentence for people."""
    plan, progress = rollout.plan, rollout.progress
    chance = f"evidence 1 in {format_evidence(state.log_evidence)} by chance"
    if state.guard is Guard.COST:
        candidate, baseline = (amounts.written(MicroCredits(round(arm.cost.mean))) for arm in (progress.candidate, progress.baseline))
        return f"{plan.candidate}: {candidate} upstream for 1,000 tokens, {plan.baseline}: {baseline}; {chance}"
    what = _BAD.get(state.guard, f"answers began later than {progress.first_token_limit_ms} ms")
    return (
        f"{plan.candidate}: {state.candidate.bad} of {state.candidate.outcomes} {what}, "
        f"{plan.baseline}: {state.baseline.bad} of {state.baseline.outcomes}; {chance}"
    )


def format_evidence(log_evidence: float) -> str:
    return "over a billion" if log_evidence > math.log(1e9) else f"{float(f'{math.exp(max(log_evidence, 0.0)):.2g}'):,.0f}"


# --- steps --------------------------------------------------------------------------------------------------------------


def look(rollout: Rollout, outcomes: Sequence[RequestOutcome], now: datetime) -> Rollout:
    """Return an open rollout after a look at new outcomes."""
    progress = rollout_evidence.record(rollout.progress, rollout.plan, rollout.sticky, outcomes)
    if outcomes:
        progress = replace(progress, outcome_at=now)
    rollout = replace(rollout, progress=progress)
    violation = find_violation(rollout.plan, progress)
    if violation is not None:
        return end(rollout, RolloutState.ROLLED_BACK, describe_violation(rollout, violation), now)
    if rollout.plan.until is not None and now >= rollout.plan.until:
        return end(rollout, RolloutState.ENDED, "its time is over", now)
    if rollout.state is RolloutState.PAUSED:
        return rollout
    if now - progress.outcome_at > timedelta(seconds=SILENT_SECONDS):
        return replace(rollout, state=RolloutState.HOLDING, reason=f"no outcomes for {SILENT_SECONDS:g} s")
    rollout = replace(rollout, state=RolloutState.RUNNING, reason="")
    return _step_up(rollout, now) if outcomes and _may_step_up(rollout, now) else rollout


def _may_step_up(rollout: Rollout, now: datetime) -> bool:
    plan, progress = rollout.plan, rollout.progress
    return (
        not plan.only_compares
        and now - progress.step_began_at >= timedelta(seconds=plan.step_seconds)
        and progress.step_requests >= plan.step_requests
        and (rollout.sticky not in BY_UNIT or progress.evidence(Guard.ERRORS).has_units())
    )


def _step_up(rollout: Rollout, now: datetime) -> Rollout:
    step = rollout.progress.step + 1
    if step < len(rollout.plan.steps):
        return replace(rollout, progress=replace(rollout.progress, step=step, step_began_at=now, step_requests=0))
    return end(rollout, RolloutState.PROMOTED, "all steps are done", now) if rollout.share == 100 else rollout


def resume(rollout: Rollout, now: datetime) -> Rollout:
    """Continue a paused rollout. Its step begins again."""
    progress = replace(rollout.progress, step_began_at=now, step_requests=0, outcome_at=now)
    return replace(rollout, state=RolloutState.RUNNING, reason="", progress=progress)


def is_point_due(rollout: Rollout, now: datetime) -> bool:
    """Return whether the charts need another point: every minute at first, later after a five-hundredth of the whole time."""
    last = rollout.progress.point_at
    return last is None or not rollout.is_open or now - last >= max(_POINT, (now - rollout.started_at) / 500)


def end(rollout: Rollout, state: RolloutState, reason: str, now: datetime) -> Rollout:
    return replace(rollout, state=state, reason=reason, ended_at=now)
