"""Simulated rollouts: checks of outcomes with known failure rates."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from services.gateway.rollouts import rollout_rules
from services.gateway.rollouts.rollout_evidence import Progress, RequestOutcome
from services.gateway.rollouts.rollout_rules import Rollout
from shared.api.configuration import RolloutGuards, RolloutPlan, RolloutState
from shared.config_documents import Sticky

BEGAN = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOBODY = UUID(int=1)


def rollout(
    sticky: Sticky = Sticky.CONVERSATION, *, state: RolloutState = RolloutState.RUNNING, limit_ms: int | None = 300, **plan: Any
) -> Rollout:
    return Rollout(
        id=UUID(int=9),
        route="assistant",
        sticky=sticky,
        plan=RolloutPlan("next", "local", **plan),
        state=state,
        progress=Progress(step_began_at=BEGAN, outcome_at=BEGAN, first_token_limit_ms=limit_ms),
        started_at=BEGAN,
    )


def outcome(
    number: int = 0, *, is_candidate: bool = True, failed: bool | None = False, tenant: UUID | None = None, **more: Any
) -> RequestOutcome:
    """Return an outcome; each number is another tenant by default."""
    who = tenant or UUID(int=1_000 + number)
    given: dict[str, Any] = {"user": who, "began_at": BEGAN + timedelta(milliseconds=number)} | more
    return RequestOutcome(is_candidate=is_candidate, tenant=who, failed=failed, **given)


def outcomes(count: int, bad: int, *, is_candidate: bool, **more: Any) -> list[RequestOutcome]:
    return [outcome(number, is_candidate=is_candidate, failed=number < bad, **more) for number in range(count)]


def after(found: Rollout, *looks: list[RequestOutcome], seconds: float = 5) -> Rollout:
    """Return the rollout after a check of each list, ``seconds`` apart."""
    now = found.progress.outcome_at
    for each in looks:
        now += timedelta(seconds=seconds)
        found = rollout_rules.look(found, each, now)
        if not found.is_open:
            break
    return found


@dataclass(frozen=True)
class Arms:
    """The outcomes that each check gets."""

    candidate: int = 5
    baseline: int = 20
    #: Failure rates.
    candidate_bad: float = 0.02
    baseline_bad: float = 0.02
    #: Correlation between the outcomes of a unit.
    correlation: float = 0.05
    #: Units of each arm; None for new units in each check, with ``unit_requests`` requests each.
    units: int | None = None
    unit_requests: int = 5


def looks(rng: random.Random, arms: Arms, count: int) -> Iterator[list[RequestOutcome]]:
    spread = (1 - arms.correlation) / arms.correlation

    def draw_unit(share: float) -> float:
        return rng.betavariate(share * spread, (1 - share) * spread)

    both = ((True, arms.candidate, arms.candidate_bad), (False, arms.baseline, arms.baseline_bad))
    fixed = {arm: [draw_unit(share) for _ in range(arms.units or 0)] for arm, _, share in both}
    for _ in range(count):
        found = []
        for arm, requests, share in both:
            units = fixed[arm] or [draw_unit(share) for _ in range(max(1, requests // arms.unit_requests))]
            for _ in range(requests):
                unit = rng.randrange(len(units))
                # The two arms have different users.
                who = UUID(int=10_000 * arm + unit + 1)
                found.append(RequestOutcome(is_candidate=arm, tenant=who, user=who, began_at=BEGAN, failed=rng.random() < units[unit]))
        yield found


def simulate(rng: random.Random, found: Rollout, arms: Arms, count: int) -> Rollout:
    """Return the rollout after ``count`` checks, or when it ended."""
    only_errors = RolloutGuards(first_token=None, thumbs=None, cost=None)
    plan = replace_plan(found, guards=only_errors)
    return after(plan, *looks(rng, arms, count))


def replace_plan(found: Rollout, **changes: Any) -> Rollout:
    fields = {name: getattr(found.plan, name) for name in RolloutPlan.__struct_fields__}
    return replace(found, plan=RolloutPlan(**fields | changes))
