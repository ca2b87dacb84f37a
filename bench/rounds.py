"""Let all contenders take turns in rounds, and compare the pairs of each round.

The speed of a machine drifts by more than the measured differences. Two figures of one round are minutes apart at most, so their ratio is
meaningful; the median of the ratios leaves out a round in which something else was running.
"""

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from bench import report

T = TypeVar("T")


def in_turn(everyone: Sequence[T], number: int) -> list[T]:
    """Start each round with another contender."""
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
    """Return the medians of both sides, and the median of the rounds' ratios with its range."""
    ratios = [value / other if other else math.nan for value, other in zip(values, others, strict=True)]
    # NaN cannot be ordered, so the median of the others would depend on its place.
    ratio = math.nan if any(map(math.isnan, ratios)) else statistics.median(ratios)
    row = report.Row(claim, statistics.median(values), unit, rival, statistics.median(others), ratio, between=(min(ratios), max(ratios)))
    return report.judge(row, at_most=at_most, at_least=at_least)


class Neighbours:
    """The share of the processors that other processes use: above a few percent the figures are not valid.

    llama.cpp's threads wait for each other after every operation, so one that shares its core delays all of them.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._idle = _busy_seconds(), _own_seconds(), _idle_seconds()

    def share(self) -> float:
        """Return the share since the start, from 0 to 1. This process and its ended children do not count as others."""
        busy, own, idle = _busy_seconds() - self._busy, _own_seconds() - self._own, _idle_seconds() - self._idle
        return max(0.0, busy - own) / max(busy + idle, 1e-9)


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, steal = _ticks()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _idle_seconds() -> float:
    return sum(_ticks()[3:5]) / os.sysconf("SC_CLK_TCK")


def _ticks() -> list[int]:
    # proc_stat(5): the first line is the sum of all processors.
    with Path("/proc/stat").open(encoding="ascii") as file:
        return [int(each) for each in file.readline().split()[1:9]]


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
