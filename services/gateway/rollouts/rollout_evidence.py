"""Sums up what the outcomes of requests say about the two arms of a rollout. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec

from services.gateway.rollouts import sequential_tests
from services.gateway.rollouts.sequential_tests import NO_NUMBERS, NO_OUTCOMES, ArmCount, MeanSum
from shared.api.configuration import RolloutPlan
from shared.config_documents import Sticky
from shared.types import Moment

#: Outcomes of one tenant that count, in one look at one arm.
MAX_OF_TENANT: Final = 20
#: Outcomes of the candidate before a condition may be violated.
_MIN_OUTCOMES: Final = 30
_MIN_COSTS: Final = 100
#: Units of each arm, where arms hold different units.
MIN_UNITS: Final = 10
#: Units are spread over so many groups, so that the evidence stays small.
_UNIT_GROUPS: Final = 512
#: An answer is late after this many times what 95 % of the baseline's took.
_LATE_FACTOR: Final = 1.5
_MIN_LIMIT_MS: Final = 200
#: The baseline's answers that fix the limit if there were none before the rollout.
FIRST_TOKENS: Final = 100
#: The scales at which the mixture sequences are sharpest.
SHARE_TAU: Final = 0.05
MEAN_TAU: Final = 0.1
#: The width of the steps in which first-token times are counted.
_BIN_FACTOR: Final = 1.1

BY_UNIT = frozenset({Sticky.USER, Sticky.ORGANIZATION})


class Guard(StrEnum):
    ERRORS = "errors"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a condition, no secret
    THUMBS = "thumbs"
    COST = "cost"


SHARES = (Guard.ERRORS, Guard.FIRST_TOKEN, Guard.THUMBS)


class RequestOutcome(msgspec.Struct, frozen=True, gc=False):
    """What a request, or its rating, says about the arm that was drawn for it. A struct, because thousands are read in each look."""

    is_candidate: bool
    tenant: UUID
    user: UUID
    began_at: Moment
    #: False for a rating, and for a running request that is late.
    has_ended: bool = True
    #: None if it says nothing about errors.
    failed: bool | None = None
    #: None if no text came.
    first_token_ms: int | None = None
    #: How long the caller of an answer without text has waited.
    waited_ms: int | None = None
    #: From the first text to the end.
    writing_ms: int | None = None
    tokens: int = 0
    completion_tokens: int = 0
    upstream_micro: int = 0
    rating: int | None = None


@dataclass(frozen=True, slots=True)
class ShareEvidence:
    """About a share of bad outcomes."""

    candidate: ArmCount = NO_OUTCOMES
    baseline: ArmCount = NO_OUTCOMES
    log_evidence: float = 0.0
    #: Where arms hold different units: their groups, by number.
    candidate_units: Mapping[str, ArmCount] = field(default_factory=dict)
    baseline_units: Mapping[str, ArmCount] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        return self.candidate.share - self.baseline.share

    @property
    def variance(self) -> float:
        if self.candidate_units or self.baseline_units:
            return sum(sequential_tests.share_variance(units.values()) for units in (self.candidate_units, self.baseline_units))
        return sum(sequential_tests.independent_variance(arm) for arm in (self.candidate, self.baseline))

    def has_units(self) -> bool:
        return min(len(self.candidate_units), len(self.baseline_units)) >= MIN_UNITS


@dataclass(frozen=True, slots=True)
class ArmTotals:
    """All requests of an arm, not only those that count."""

    requests: int = 0
    #: Answers by the time until their first token, as powers of ``_BIN_FACTOR``.
    first_tokens: Mapping[str, int] = field(default_factory=dict)
    #: Upstream money for 1,000 tokens, of requests that count.
    cost: MeanSum = NO_NUMBERS
    #: What all requests cost upstream.
    upstream_micro: int = 0
    #: Tokens of whole answers, and how long it took to write them.
    written_tokens: int = 0
    writing_ms: int = 0

    def quantile_ms(self, share: float) -> int | None:
        left = share * sum(self.first_tokens.values())
        for power, count in sorted((int(power), count) for power, count in self.first_tokens.items()):
            left -= count
            if left <= 0:
                return round(_BIN_FACTOR**power)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is known about a rollout so far."""

    step: int = 0
    step_began_at: datetime
    #: Requests that the candidate got in this step.
    step_requests: int = 0
    outcome_at: datetime
    #: None until the baseline has had enough answers.
    first_token_limit_ms: int | None = None
    #: The baseline's answers until then.
    early_first_tokens: tuple[int, ...] = ()
    shares: Mapping[str, ShareEvidence] = field(default_factory=dict)
    candidate: ArmTotals = field(default_factory=ArmTotals)
    baseline: ArmTotals = field(default_factory=ArmTotals)
    #: When the last point of the charts was recorded.
    point_at: datetime | None = None

    def evidence(self, guard: Guard) -> ShareEvidence:
        return self.shares.get(guard.value, ShareEvidence())


def first_token_limit(p95_ms: float) -> int:
    return max(_MIN_LIMIT_MS, round(_LATE_FACTOR * p95_ms))


def margin(plan: RolloutPlan, guard: Guard) -> float | None:
    """Return how much worse the candidate may be: a difference of shares, or a factor for ``cost``; None if it is not judged."""
    found: float | None = getattr(plan.guards, guard.value)
    return found if found is None or guard is Guard.COST else found / 100


# --- what outcomes say --------------------------------------------------------------------------------------------------


def record(progress: Progress, plan: RolloutPlan, sticky: Sticky, outcomes: Sequence[RequestOutcome]) -> Progress:
    """Return the progress after a look at new outcomes."""
    if not outcomes:
        return progress
    counted = list(_limit_tenants(outcomes))
    progress = _with_limit(progress, counted)
    limit = progress.first_token_limit_ms
    shares = {}
    for guard in SHARES:
        judged = [(outcome, bad) for outcome in counted if (bad := _is_bad(guard, outcome, limit)) is not None]
        shares[guard.value] = _add(progress.evidence(guard), judged, sticky, margin(plan, guard) or 0.0)
    candidate = _add_totals(progress.candidate, outcomes, counted, is_candidate=True)
    return replace(
        progress,
        step_requests=progress.step_requests + candidate.requests - progress.candidate.requests,
        shares=shares,
        candidate=candidate,
        baseline=_add_totals(progress.baseline, outcomes, counted, is_candidate=False),
    )


def _limit_tenants(outcomes: Sequence[RequestOutcome]) -> Iterator[RequestOutcome]:
    """Yield at most the first few of each tenant and arm, so that no tenant decides alone."""
    seen: defaultdict[tuple[bool, UUID, bool], int] = defaultdict(int)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.began_at):
        key = outcome.is_candidate, outcome.tenant, outcome.rating is None
        seen[key] += 1
        if seen[key] <= MAX_OF_TENANT:
            yield outcome


def _with_limit(progress: Progress, counted: Iterable[RequestOutcome]) -> Progress:
    """Fix the first-token limit by the baseline's first answers if it isn't known."""
    if progress.first_token_limit_ms is not None:
        return progress
    times = (outcome.first_token_ms for outcome in counted if not outcome.is_candidate and outcome.first_token_ms is not None)
    early = (*progress.early_first_tokens, *times)
    if len(early) < FIRST_TOKENS:
        return replace(progress, early_first_tokens=early)
    p95 = sorted(early)[math.ceil(0.95 * len(early)) - 1]
    return replace(progress, first_token_limit_ms=first_token_limit(p95), early_first_tokens=())


def _is_bad(guard: Guard, outcome: RequestOutcome, limit_ms: int | None) -> bool | None:
    """Return None if the outcome says nothing about this guard."""
    match guard:
        case Guard.ERRORS:
            return outcome.failed
        case Guard.FIRST_TOKEN if limit_ms is not None and outcome.first_token_ms is not None:
            return outcome.first_token_ms > limit_ms
        case Guard.FIRST_TOKEN if limit_ms is not None and outcome.waited_ms is not None and outcome.waited_ms > limit_ms:
            return True
        case Guard.THUMBS if outcome.rating is not None:
            return outcome.rating < 0
        case _:
            return None


def _add(evidence: ShareEvidence, judged: Sequence[tuple[RequestOutcome, bool]], sticky: Sticky, allowed: float) -> ShareEvidence:
    before, look = (evidence.candidate, evidence.baseline), (_count(judged, is_candidate=True), _count(judged, is_candidate=False))
    after = replace(evidence, candidate=before[0] + look[0], baseline=before[1] + look[1])
    if sticky not in BY_UNIT:
        return replace(after, log_evidence=evidence.log_evidence + sequential_tests.log_of_look(before, look, allowed))
    units = dict(evidence.candidate_units), dict(evidence.baseline_units)
    for outcome, bad in judged:
        unit = outcome.user if sticky is Sticky.USER else outcome.tenant
        groups, name = units[not outcome.is_candidate], str(unit.int % _UNIT_GROUPS)
        groups[name] = groups.get(name, NO_OUTCOMES) + ArmCount(1, int(bad))
    after = replace(after, candidate_units=units[0], baseline_units=units[1])
    known = after.has_units() and after.difference > 0
    log_evidence = sequential_tests.mixture_log_evidence(after.difference, after.variance, SHARE_TAU) if known else 0.0
    return replace(after, log_evidence=log_evidence)


def _count(judged: Iterable[tuple[RequestOutcome, bool]], *, is_candidate: bool) -> ArmCount:
    of_arm = [bad for outcome, bad in judged if outcome.is_candidate is is_candidate]
    return ArmCount(len(of_arm), sum(of_arm))


def _add_totals(
    totals: ArmTotals, outcomes: Iterable[RequestOutcome], counted: Iterable[RequestOutcome], *, is_candidate: bool
) -> ArmTotals:
    of_arm = [outcome for outcome in outcomes if outcome.is_candidate is is_candidate]
    first_tokens = dict(totals.first_tokens)
    for outcome in of_arm:
        if outcome.first_token_ms is not None:
            power = str(round(math.log(max(outcome.first_token_ms, 1), _BIN_FACTOR)))
            first_tokens[power] = first_tokens.get(power, 0) + 1
    whole = [outcome for outcome in of_arm if outcome.writing_ms]
    costs = (1_000 * each.upstream_micro / each.tokens for each in counted if each.is_candidate is is_candidate and each.tokens)
    return ArmTotals(
        totals.requests + sum(outcome.has_ended for outcome in of_arm),
        first_tokens,
        totals.cost.plus(costs),
        totals.upstream_micro + sum(outcome.upstream_micro for outcome in of_arm),
        totals.written_tokens + sum(outcome.completion_tokens for outcome in whole),
        totals.writing_ms + sum(outcome.writing_ms or 0 for outcome in whole),
    )


# --- conditions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConditionState:
    """What is known about one guard."""

    guard: Guard
    #: Candidate less baseline.
    difference: float
    variance: float
    #: The scale of the mixture sequence.
    tau: float
    #: The logarithm of an e-value.
    log_evidence: float
    #: Whether the candidate has had enough outcomes and exceeds the margin.
    exceeds: bool
    candidate: ArmCount = NO_OUTCOMES
    baseline: ArmCount = NO_OUTCOMES


def conditions(plan: RolloutPlan, progress: Progress) -> Iterator[ConditionState]:
    for guard in SHARES:
        evidence, allowed = progress.evidence(guard), margin(plan, guard)
        exceeds = allowed is not None and evidence.candidate.outcomes >= _MIN_OUTCOMES and evidence.difference > allowed
        yield ConditionState(
            guard,
            evidence.difference,
            evidence.variance,
            SHARE_TAU,
            evidence.log_evidence,
            exceeds,
            evidence.candidate,
            evidence.baseline,
        )
    candidate, baseline, factor = progress.candidate.cost, progress.baseline.cost, plan.guards.cost
    difference, tau = candidate.mean - baseline.mean, MEAN_TAU * baseline.mean
    variance = candidate.variance + baseline.variance
    # A baseline that costs nothing has no multiple.
    is_known = candidate.count >= _MIN_COSTS and baseline.mean > 0
    log_evidence = sequential_tests.mixture_log_evidence(difference, variance, tau) if is_known and difference > 0 else 0.0
    exceeds = is_known and factor is not None and candidate.mean > factor * baseline.mean
    yield ConditionState(Guard.COST, difference, variance, tau, log_evidence, exceeds)
