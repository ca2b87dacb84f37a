"""Restart programs that are alive but no longer answer, or say that a part of them has died: such a process has no exit status.

Any other answer counts: also 503 because of too many connections, or a PostgreSQL that is starting or recovering.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from stack import probes
from stack.process_keeper import Hung, ProcessKeeper

_LOOK_SECONDS = 5.0
#: A program that has answered before is restarted after this long without an answer.
SILENCE_SECONDS = 60.0
#: A program that has not answered since its start gets longer, because busy machines start slowly.
START_SECONDS = 600.0
#: A pause of our own process must not look like a silent program.
_MIN_TRIES = 3
#: A round in which most programs are silent counts for none: the machine slept or is overloaded. After this long it counts, because
#: they can also hang together.
SHARED_SILENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class SilentProgram:
    """What is known about a process that did not answer last time."""

    pid: int
    #: Its last answer, or the time it was first seen.
    since: float
    has_answered: bool
    tries: int = 0


def note_answer(before: SilentProgram | None, pid: int, answered: bool, now: float) -> SilentProgram:
    """Return what is known after one more probe. Pure."""
    if answered:
        return SilentProgram(pid, now, has_answered=True)
    if before is None or before.pid != pid:
        return SilentProgram(pid, now, has_answered=False, tries=1)
    return SilentProgram(pid, before.since, before.has_answered, before.tries + 1)


def is_hung(silence: SilentProgram, now: float) -> bool:
    """Decide whether the process must be restarted. Pure."""
    limit = SILENCE_SECONDS if silence.has_answered else START_SECONDS
    return silence.tries >= _MIN_TRIES and now - silence.since >= limit


def is_shared(before: Mapping[str, SilentProgram], answers: Mapping[str, bool]) -> bool:
    """Decide whether a round was silent because of the machine. Programs that never answered are still starting. Pure."""
    known = [answered for name, answered in answers.items() if name in before and before[name].has_answered]
    silent = known.count(False)
    return silent > 1 and 2 * silent > len(known)


async def watch(
    keepers: Mapping[str, ProcessKeeper], *, look_seconds: float = _LOOK_SECONDS, now: Callable[[], float] = time.monotonic
) -> None:
    """Probe every running program in a loop, until canceled."""
    silences: dict[str, SilentProgram] = {}
    shared_since: float | None = None
    looked_at: float | None = None
    while True:
        await asyncio.sleep(look_seconds)
        statuses = {name: keeper.status for name, keeper in keepers.items()}
        probed = {name: status for name, status in statuses.items() if status.state == "running" and status.pid is not None}
        answered = await asyncio.gather(*(probes.gets_answer(keepers[name].program) for name in probed))
        answers, at = dict(zip(probed, answered, strict=True)), now()
        round_seconds, looked_at = 0.0 if looked_at is None else at - looked_at, at
        # A new process has a new history.
        silences = {name: silence for name, silence in silences.items() if name in probed and probed[name].pid == silence.pid}
        shared_since = (at if shared_since is None else shared_since) if is_shared(silences, answers) else None
        is_excused = shared_since is not None and at - shared_since < SHARED_SILENCE_SECONDS
        for name, status in probed.items():
            assert status.pid is not None
            before = silences.get(name)
            if is_excused and before is not None and before.has_answered and not answers[name]:
                silences[name] = replace(before, since=before.since + round_seconds)
                continue
            silences[name] = note_answer(before, status.pid, answers[name], at)
            if is_hung(silences[name], at):
                del silences[name]
                keepers[name].order(Hung(status.pid))
