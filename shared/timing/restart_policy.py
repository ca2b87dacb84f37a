"""Decides whether and when to restart a program that crashed. Pure: the caller brings the clock.

The first crash costs a one-second pause. The pause doubles with each crash in a row, up to 30 s; a program that ran well before begins
with one second again. After five crashes within five minutes it stays down until an administrator restarts it.
"""

from dataclasses import dataclass

from shared.timing.backoff import Backoff

BACKOFF = Backoff(first_seconds=1.0, longest_seconds=30.0)
MAX_CRASHES = 5
WINDOW_SECONDS = 300.0
#: A program that ran for so long ran well. Pauses are for those that crash at their start.
WELL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RestartHistory:
    #: The times of the crashes that still count.
    crashes: tuple[float, ...] = ()
    #: Crashes in a row. A run of WELL_SECONDS starts a new row.
    streak: int = 0


@dataclass(frozen=True, slots=True)
class RestartIn:
    seconds: float
    history: RestartHistory


@dataclass(frozen=True, slots=True)
class GiveUp:
    #: Within the window.
    crashes: int


def decide(history: RestartHistory, *, started_at: float, now: float) -> RestartIn | GiveUp:
    """Decide what to do about a program that started at ``started_at`` and crashed now."""
    crashes = (*(at for at in history.crashes if now - at < WINDOW_SECONDS), now)
    if len(crashes) >= MAX_CRASHES:
        return GiveUp(len(crashes))
    streak = 1 if now - started_at >= WELL_SECONDS else history.streak + 1
    return RestartIn(BACKOFF.pause(streak), RestartHistory(crashes, streak))
