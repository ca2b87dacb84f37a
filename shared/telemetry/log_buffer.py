"""Keep the latest log lines of this process for the log collector. The oldest are dropped if nobody reads them."""

from typing import Final

from shared.telemetry.ring_buffer import RingBuffer, RingReading

#: A few minutes of a busy service.
MAX_KEPT: Final = 4_096
#: Per call, so that they fit into one message.
MAX_READ: Final = 200
#: Longer lines go to stdout only.
MAX_LINE: Final = 4_096

_kept: RingBuffer[str] = RingBuffer(MAX_KEPT)


def add(line: str) -> None:
    if len(line) <= MAX_LINE:
        _kept.add((line,))


def read(after: int) -> RingReading[str]:
    """Return the lines from number ``after`` on, each a JSON object."""
    return _kept.read(after, MAX_READ)
