"""Gives a loop its commands as the engine's process does, with the tokenizing in between."""

from services.inference.engine.loop import Loop
from services.inference.engine.wire import Accepted, Cancel, Generate, Refused
from shared import errors


def handle(loop: Loop, command: Generate | Cancel) -> Accepted | Refused | None:
    if isinstance(command, Cancel):
        loop.cancel(command.id)
        return None
    try:
        loop.measure(command)
        tokens = loop.tokenize(command)
    except errors.BadRequest as error:
        return Refused(command.id, error.to_problem())
    return loop.begin(command, tokens)
