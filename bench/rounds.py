"""Rounds in which all contenders take turns, and what comes of them: the ratio of each round's pair.

A machine's speed drifts by more than what is measured. Two figures of one round are minutes apart at most, so their ratio
keeps its meaning; the median of the ratios leaves out a round in which something else ran.
"""

import statistics
from collections.abc import Sequence

from bench import report
from bench.contenders import Contender


def in_turn(everyone: Sequence[Contender], number: int) -> list[Contender]:
    """Who goes first is another one in each round."""
    first = number % len(everyone)
    return [*everyone[first:], *everyone[:first]]


def paired(
    claim: str,
    unit: str,
    values: Sequence[float],
    rival: str,
    others: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> report.Row:
    """The medians of both, and the median of the rounds' ratios, with the least and the largest of them beside the claim."""
    ratios = sorted(value / other for value, other in zip(values, others, strict=True))
    ratio = statistics.median(ratios)
    target, met = None, None
    if at_most is not None:
        target, met = f"ratio <= {at_most:g}", ratio <= at_most
    elif at_least is not None:
        target, met = f"ratio >= {at_least:g}", ratio >= at_least
    claim = f"{claim} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    return report.Row(claim, statistics.median(values), unit, rival, statistics.median(others), ratio, target, met)
