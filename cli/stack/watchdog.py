"""Restarts programs that live but no longer answer: a process that hangs has no exit status that could show it.

Only silence counts. A service that answers /healthz or /readyz with 503, or a PostgreSQL that says it is starting or
recovering, answers.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cli.stack import probes
from cli.stack.control import ProgramStatus
from cli.stack.keeper import Hung, Keeper

_LOOK_SECONDS = 5.0
#: A program that has answered before is restarted after this long without any answer.
SILENCE_SECONDS = 60.0
#: One that has never answered since its start gets longer: a busy machine starts slowly.
START_SECONDS = 600.0
#: A pause of our own process, or of the whole machine, must not look like a program's silence.
_LEAST_TRIES = 3


@dataclass(frozen=True, slots=True)
class Silence:
    """What is known about one process that did not answer the last time."""

    pid: int
    #: When it last answered; when it was first seen, if it never did.
    since: float
    has_answered: bool
    tries: int = 0


def note_answer(before: Silence | None, pid: int, answered: bool, now: float) -> Silence:
    """Return what is known after one more question. Pure."""
    if answered:
        return Silence(pid, now, has_answered=True)
    if before is None or before.pid != pid:
        return Silence(pid, now, has_answered=False, tries=1)
    return Silence(pid, before.since, before.has_answered, before.tries + 1)


def is_hung(silence: Silence, now: float) -> bool:
    """Decide whether the process must be restarted. Pure."""
    limit = SILENCE_SECONDS if silence.has_answered else START_SECONDS
    return silence.tries >= _LEAST_TRIES and now - silence.since >= limit


async def watch(keepers: Mapping[str, Keeper], *, look_seconds: float = _LOOK_SECONDS, now: Callable[[], float] = time.monotonic) -> None:
    """Ask every running program again and again; ends by cancellation."""
    silences: dict[str, Silence] = {}
    while True:
        await asyncio.sleep(look_seconds)
        asked = {name: keeper.status for name, keeper in keepers.items() if _can_be_asked(keeper.status)}
        answers = await asyncio.gather(*(probes.gets_answer(keepers[name].program) for name in asked))
        for (name, status), answered in zip(asked.items(), answers, strict=True):
            assert status.pid is not None
            silences[name] = note_answer(silences.get(name), status.pid, answered, now())
            if is_hung(silences[name], now()):
                del silences[name]
                keepers[name].order(Hung(status.pid))


def _can_be_asked(status: ProgramStatus) -> bool:
    return status.state == "running" and status.pid is not None
