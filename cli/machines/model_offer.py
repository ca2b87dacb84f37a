"""Offers a model to the person at the terminal of a machine that joined a mesh without one.

`install.sh` joins with stdin from a pipe, so the question goes to /dev/tty. Without a terminal, nothing is asked. Without an answer, it
asks again when the worker next starts at a terminal.
"""

import os
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum

import msgspec

from shared.api.inference import StarterOffer

#: Without an answer by then, the machine stays without a model.
ANSWER_SECONDS = 180.0
#: Finding the GPU can take that long on a slow machine.
_FIND_SECONDS = 120.0
_BITS_PER_MINUTE = 60 * 100_000_000


class Answer(Enum):
    """What became of the question: nobody said anything, or there was nobody to ask; or a person declined."""

    NONE = "none"
    NO = "no"


def take(command: Sequence[str], environment: Mapping[str, str]) -> str | Answer:
    """Return the source of the model that the person takes. ``command`` prints the offer."""
    with _terminal() as terminal:
        if terminal is None or (offer := _find(command, environment)) is None:
            return Answer.NONE
        taken = _ask(terminal, question_of(offer))
        hints = {
            True: "The worker downloads it when it starts.",
            False: f"No model. To add one later: aicli models pull {offer.source}",
            None: f"No answer, so no model. aicli worker asks again; to add it without: aicli models pull {offer.source}",
        }
        os.write(terminal, f"{hints[taken]}\n".encode())
        return offer.source if taken else Answer.NONE if taken is None else Answer.NO


def question_of(offer: StarterOffer) -> str:
    """Pure."""
    minutes = -(-8 * offer.file_bytes // _BITS_PER_MINUTE)
    memory, download = f"{offer.free_bytes / 10**9:.0f} GB of memory for models", f"a download of {offer.file_bytes / 10**9:.1f} GB"
    speed = offer.tokens_per_second
    if speed is None:
        machine, best = memory, "The best that fits is"
    else:
        machine = f"{memory}, but no GPU"
        best = f"The best for its processor, with about {speed:.0f} tokens a second, is"
    return (
        f"This machine has no model yet, and {machine}.\n"
        f"{best} {offer.source}, {download}: about {minutes} min at 100 Mbit/s.\n"
        f"Take it? [Y/n] "
    )


@contextmanager
def _terminal() -> Iterator[int | None]:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        yield None
        return
    try:
        # The terminal would stop a job in the background that asks.
        yield terminal if os.tcgetpgrp(terminal) == os.getpgrp() else None
    finally:
        os.close(terminal)


def _find(command: Sequence[str], environment: Mapping[str, str]) -> StarterOffer | None:
    try:
        found = subprocess.run(  # noqa: S603
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_FIND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return msgspec.json.decode(found.stdout, type=StarterOffer) if found.stdout else None


def _ask(terminal: int, question: str) -> bool | None:
    """Return None without an answer."""
    import termios

    # An Enter that was typed before the question is no answer.
    termios.tcflush(terminal, termios.TCIFLUSH)
    os.write(terminal, question.encode())
    if not select.select([terminal], [], [], ANSWER_SECONDS)[0]:
        return None
    # Ctrl-D gives no byte.
    line = os.read(terminal, 1024)
    return line.strip().lower() in (b"", b"y", b"yes") if line else None
