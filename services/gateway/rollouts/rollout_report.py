"""Describes rollouts for people and charts. Pure."""

import math
from datetime import datetime
from typing import Final

from services.gateway.rollouts import rollout_evidence, sequential_tests
from services.gateway.rollouts.rollout_evidence import ArmTotals, ConditionState, Guard
from services.gateway.rollouts.rollout_rules import Rollout
from shared.api import configuration as api

#: How often an interval may miss the true difference.
_ALPHA: Final = 0.05
_MAX_EVIDENCE: Final = 1e12


def summarize(rollout: Rollout) -> api.RolloutSummary:
    return api.RolloutSummary(
        id=rollout.id,
        route=rollout.route,
        plan=rollout.plan,
        state=rollout.state,
        share=rollout.share,
        step=rollout.progress.step,
        step_began_at=rollout.progress.step_began_at,
        step_requests=rollout.progress.step_requests,
        reason=rollout.reason,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
    )


def describe_arms(rollout: Rollout) -> tuple[api.RolloutArm, api.RolloutArm]:
    """Return candidate and baseline."""
    plan, progress = rollout.plan, rollout.progress
    return _arm(plan.candidate, progress.candidate), _arm(plan.baseline, progress.baseline)


def describe_conditions(rollout: Rollout) -> tuple[api.RolloutCondition, ...]:
    return tuple(_condition(rollout, state) for state in rollout_evidence.conditions(rollout.plan, rollout.progress))


def describe_point(rollout: Rollout, share: float, now: datetime) -> api.RolloutPoint:
    """Describe the rollout now. ``share``: that of the candidate until now."""
    states = rollout_evidence.conditions(rollout.plan, rollout.progress)
    intervals = (
        api.RolloutInterval(
            state.guard.value,
            state.candidate.bad,
            state.candidate.outcomes,
            state.baseline.bad,
            state.baseline.outcomes,
            state.difference,
            _half_width(state),
        )
        for state in states
    )
    return api.RolloutPoint(now, share, describe_arms(rollout), tuple(intervals))


def _arm(target: str, totals: ArmTotals) -> api.RolloutArm:
    return api.RolloutArm(
        target=target,
        requests=totals.requests,
        first_token_p50_ms=totals.quantile_ms(0.5),
        first_token_p95_ms=totals.quantile_ms(0.95),
        tokens_per_second=1_000 * totals.written_tokens / totals.writing_ms if totals.writing_ms else None,
        cost_micro=totals.upstream_micro,
        token_cost_micro=totals.cost.mean,
    )


def _condition(rollout: Rollout, state: ConditionState) -> api.RolloutCondition:
    return api.RolloutCondition(
        name=state.guard.value,
        margin=rollout_evidence.margin(rollout.plan, state.guard),
        candidate_bad=state.candidate.bad,
        candidate_outcomes=state.candidate.outcomes,
        baseline_bad=state.baseline.bad,
        baseline_outcomes=state.baseline.outcomes,
        difference=state.difference,
        half_width=_half_width(state),
        evidence=min(math.exp(min(max(state.log_evidence, 0.0), math.log(_MAX_EVIDENCE))), _MAX_EVIDENCE),
        verdict=_verdict(rollout.plan.candidate, state),
    )


def _half_width(state: ConditionState) -> float | None:
    """Return None if nothing is known yet."""
    found = sequential_tests.mixture_half_width(state.variance, state.tau, _ALPHA)
    return found if math.isfinite(found) else None


def _verdict(candidate: str, state: ConditionState) -> str:
    half_width = _half_width(state)
    if half_width is None:
        return "not enough outcomes yet"
    low, high = state.difference - half_width, state.difference + half_width
    if low > 0:
        return f"{candidate} is worse by at least {_amount(state.guard, low)}"
    if high < 0:
        return f"{candidate} is better by at least {_amount(state.guard, -high)}"
    return f"no difference yet; {candidate} is at most {_amount(state.guard, high)} worse"


def _amount(guard: Guard, difference: float) -> str:
    if guard is Guard.COST:
        return f"{difference:,.0f} micro-credits for 1,000 tokens"
    return f"{100 * difference:.1f} points"
