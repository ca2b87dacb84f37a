"""Whether and when something that ended is started again. Pure; whoever watches over it brings the clock.

One crash costs a second. The pause doubles while crashes follow each other, up to 30 s; five within five minutes, and it
stays down until somebody restarts it.
"""

from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
MOST_CRASHES = 5
WINDOW_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class RestartHistory:
    """The crashes that still count: those within the window before the last one."""

    crashes: tuple[float, ...] = ()
    #: Crashes in a row, none of which came after a run longer than the window.
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
    """What follows the crash of now, of what ran since ``started_at``."""
    crashes = (*(at for at in history.crashes if now - at < WINDOW_SECONDS), now)
    if len(crashes) >= MOST_CRASHES:
        return GiveUp(len(crashes))
    streak = 1 if now - started_at >= WINDOW_SECONDS else history.streak + 1
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (streak - 1))
    return RestartIn(pause, RestartHistory(crashes, streak))
