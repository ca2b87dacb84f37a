"""The latest lines of this process's log, for whoever collects the logs of the mesh. A ring: where nobody reads, the oldest go."""

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Final

#: Some minutes of a busy service.
MAX_KEPT: Final = 4_096
#: Of one reading: a message of the mesh, with room to spare.
MAX_READ: Final = 200
#: Longer ones are only on stdout.
MAX_LINE: Final = 4_096

#: A process has one log, so this is state that is not owned by an object, as ``logs`` itself.
_kept: deque[str] = deque(maxlen=MAX_KEPT)
_next = 0


@dataclass(frozen=True, slots=True)
class Batch:
    #: JSON objects.
    lines: tuple[str, ...]
    #: Where the next reading goes on.
    next: int
    #: Overwritten before they were read, by this reader.
    lost: int


def add(line: str) -> None:
    global _next  # noqa: PLW0603 - see above
    if len(line) <= MAX_LINE:
        _kept.append(line)
        _next += 1


def read(after: int) -> Batch:
    """The lines from number ``after`` on."""
    first = _next - len(_kept)
    # A number of before a restart means nothing now.
    start = first if after > _next else max(after, first)
    found = tuple(islice(_kept, start - first, start - first + MAX_READ))
    return Batch(found, start + len(found), 0 if after > _next else start - after)
