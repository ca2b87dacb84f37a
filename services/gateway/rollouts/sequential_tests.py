"""Tests whether one of two arms is worse, valid however often one looks. Pure.

``log_of_look`` sums up to the logarithm of an e-value (Turner, Ly and Grünwald): if both arms are equally good, it ever reaches ln(1/α)
with probability α at most, also if both drift together. The mixture sequence (Robbins; Johari) does the same for means, and for shares of
units, such as users, of which each stays in one arm.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: The estimate before any outcomes.
_PRIOR_BAD, _PRIOR_OUTCOMES = 0.18, 0.54
#: Baseline outcomes from earlier looks that stand for those of a look that has none.
_MIN_EARLIER = 100


@dataclass(frozen=True, slots=True)
class ArmCount:
    outcomes: int = 0
    bad: int = 0

    def __add__(self, other: "ArmCount") -> "ArmCount":
        return ArmCount(self.outcomes + other.outcomes, self.bad + other.bad)

    @property
    def share(self) -> float:
        return self.bad / self.outcomes if self.outcomes else 0.0

    @property
    def estimate(self) -> float:
        return (self.bad + _PRIOR_BAD) / (self.outcomes + _PRIOR_OUTCOMES)

    def log_ratio(self, likely: float, unlikely: float) -> float:
        """Return the logarithm of how many times more likely these outcomes are with one share of bad ones than with another."""
        return self.bad * math.log(likely / unlikely) + (self.outcomes - self.bad) * math.log((1 - likely) / (1 - unlikely))


NO_OUTCOMES: Final = ArmCount()


def log_of_look(before: tuple[ArmCount, ArmCount], look: tuple[ArmCount, ArmCount], margin: float) -> float:
    """Return what a look adds, with the candidate first; 0 if the earlier outcomes don't say that it is worse.

    Without baseline outcomes, at 100 percent, the candidate may exceed the baseline's earlier share by ``margin``.
    """
    candidate, baseline = look
    worse, better = before[0].estimate, before[1].estimate
    if baseline.outcomes:
        same = (candidate.outcomes * worse + baseline.outcomes * better) / (candidate.outcomes + baseline.outcomes)
        return candidate.log_ratio(worse, same) + baseline.log_ratio(better, same) if worse > better else 0.0
    same = better + margin
    if before[1].outcomes < _MIN_EARLIER or worse <= same:
        return 0.0
    return candidate.log_ratio(worse, same)


def mixture_half_width(variance: float, tau: float, alpha: float) -> float:
    """Return how far the true difference of two means is from the observed one at most. ``variance``: of that difference."""
    if not 0 < variance < math.inf or not tau:
        return math.inf if variance else 0.0
    spread = variance + tau**2
    return math.sqrt(variance * spread / tau**2 * (math.log(spread / variance) + 2 * math.log(1 / alpha)))


def mixture_log_evidence(difference: float, variance: float, tau: float) -> float:
    """Return the logarithm of 1/α for the α whose half-width is the difference."""
    if not 0 < variance < math.inf or not tau:
        return 0.0
    spread = variance + tau**2
    return (difference**2 * tau**2 / (variance * spread) - math.log(spread / variance)) / 2


def share_variance(units: Iterable[ArmCount]) -> float:
    """Return the variance of the share of bad outcomes in an arm with these units; infinite with fewer than two."""
    listed = [unit for unit in units if unit.outcomes]
    total = sum(listed, NO_OUTCOMES)
    if len(listed) < 2:
        return math.inf
    share, count = total.share, len(listed)
    between = sum((unit.bad - share * unit.outcomes) ** 2 for unit in listed) * count / (count - 1) / total.outcomes**2
    return max(between, _least_variance(total))


def independent_variance(arm: ArmCount) -> float:
    """Return the same for outcomes that don't depend on each other."""
    return _least_variance(arm) if arm.outcomes else math.inf


def _least_variance(arm: ArmCount) -> float:
    # One more of either kind, because a share of 0 has a variance, too.
    share = (arm.bad + 1) / (arm.outcomes + 2)
    return share * (1 - share) / arm.outcomes


@dataclass(frozen=True, slots=True)
class MeanSum:
    """Sums up numbers for their mean."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, numbers: Iterable[float]) -> "MeanSum":
        listed = list(numbers)
        return MeanSum(self.count + len(listed), self.total + sum(listed), self.squares + sum(number**2 for number in listed))

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def variance(self) -> float:
        """Return the variance of the mean; infinite with fewer than two numbers."""
        if self.count < 2:
            return math.inf
        return max(self.squares - self.total**2 / self.count, 0.0) / (self.count - 1) / self.count


NO_NUMBERS: Final = MeanSum()
