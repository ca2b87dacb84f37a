"""The latest lines of this process's log, for whoever collects the logs of the mesh. Where nobody reads, the oldest go."""

from typing import Final

from shared.telemetry.ring_buffer import RingBuffer, RingReading

#: Some minutes of a busy service.
MAX_KEPT: Final = 4_096
#: Of one reading: a message of the mesh, with room to spare.
MAX_READ: Final = 200
#: Longer ones are only on stdout.
MAX_LINE: Final = 4_096

#: A process has one log, so this is state that is not owned by an object, as ``logs`` itself.
_kept: RingBuffer[str] = RingBuffer(MAX_KEPT)


def add(line: str) -> None:
    if len(line) <= MAX_LINE:
        _kept.add((line,))


def read(after: int) -> RingReading[str]:
    """The lines from number ``after`` on, each a JSON object."""
    return _kept.read(after, MAX_READ)
