"""Rounds in which all contenders take turns, and what comes of them: the ratio of each round's pair.

A machine's speed drifts by more than what is measured. Two figures of one round are minutes apart at most, so their ratio
keeps its meaning; the median of the ratios leaves out a round in which something else ran.
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
    """The medians of both, and the median of the rounds' ratios, with the least and the largest of them beside it."""
    ratios = [value / other if other else math.nan for value, other in zip(values, others, strict=True)]
    # NaN has no place in an order, so the median of the rest would depend on where it stands.
    ratio = math.nan if any(map(math.isnan, ratios)) else statistics.median(ratios)
    row = report.Row(claim, statistics.median(values), unit, rival, statistics.median(others), ratio, between=(min(ratios), max(ratios)))
    return report.judge(row, at_most=at_most, at_least=at_least)


class Neighbours:
    """What other processes take of this machine's processors: more than a little, and the figures are about them.

    llama.cpp's threads wait for each other after every operation, so one that has to share its core holds up all of them.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._idle = _busy_seconds(), _own_seconds(), _idle_seconds()

    def share(self) -> float:
        """Since the start, 0 to 1. Ours is this process with those of its children that have ended."""
        busy, own, idle = _busy_seconds() - self._busy, _own_seconds() - self._own, _idle_seconds() - self._idle
        return max(0.0, busy - own) / max(busy + idle, 1e-9)


def _busy_seconds() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, steal = _ticks()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _idle_seconds() -> float:
    return sum(_ticks()[3:5]) / os.sysconf("SC_CLK_TCK")


def _ticks() -> list[int]:
    # proc_stat(5): the first line is all processors together.
    with Path("/proc/stat").open(encoding="ascii") as file:
        return [int(each) for each in file.readline().split()[1:9]]


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
