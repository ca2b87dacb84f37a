"""Whether and when a program that ended is started again. Pure; the supervisor brings the clock.

One crash costs a second. The pause doubles while crashes follow each other, up to 30 s; five within five minutes, or an
exit status that says "my settings are wrong", and the program stays down until somebody restarts it.
"""

from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
MOST_CRASHES = 5
WINDOW_SECONDS = 300.0
#: What a shell says of a program that is not there; used for one that could not even be started.
CANNOT_START_STATUS = 127


@dataclass(frozen=True, slots=True)
class History:
    """The crashes that still count: those within the window before the last one."""

    crashes: tuple[float, ...] = ()
    #: Crashes in a row, none of which came after a run longer than the window.
    streak: int = 0


@dataclass(frozen=True, slots=True)
class RestartIn:
    history: History
    seconds: float


@dataclass(frozen=True, slots=True)
class StayDown:
    why: str


def decide(history: History, *, status: int, hopeless_status: int | None, started_at: float, now: float) -> RestartIn | StayDown:
    """``status`` as asyncio reports it: negative for a signal. ``hopeless_status`` is the program's own word for settings
    that cannot work: starting it again would not help."""
    if status == hopeless_status:
        return StayDown("its settings are wrong; its log says which")
    crashes = (*(at for at in history.crashes if now - at < WINDOW_SECONDS), now)
    if len(crashes) >= MOST_CRASHES:
        return StayDown(f"it ended {len(crashes)} times within {WINDOW_SECONDS / 60:.0f} minutes, last with {describe(status)}")
    streak = 1 if now - started_at >= WINDOW_SECONDS else history.streak + 1
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (streak - 1))
    return RestartIn(History(crashes, streak), pause)


def describe(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
