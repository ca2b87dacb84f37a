"""Offers a model to the person at the terminal of a machine that joined a mesh without one.

Without a terminal, nothing is asked. Without an answer, it asks again when the worker next starts at a terminal.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec

from cli.machines import terminal_question
from shared.api.inference import StarterOffer

#: Finding the GPU can take that long on a slow machine.
_FIND_SECONDS = 120.0
_BITS_PER_MINUTE = 60 * 100_000_000


class Answer(Enum):
    """What became of the question: nobody said anything, or there was nobody to ask; or a person declined."""

    NONE = "none"
    NO = "no"


def take(command: Sequence[str], environment: Mapping[str, str]) -> str | Answer:
    """Return the source of the model that the person takes. ``command`` prints the offer."""
    with terminal_question.terminal() as terminal:
        if terminal is None or (offer := _find(command, environment)) is None:
            return Answer.NONE
        taken = terminal_question.ask(terminal, question_of(offer), default=True)
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


def _find(command: Sequence[str], environment: Mapping[str, str]) -> StarterOffer | None:
    try:
        found = subprocess.run(  # noqa: S603
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_FIND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return msgspec.json.decode(found.stdout, type=StarterOffer) if found.stdout else None
