"""Gives a loop its commands as the engine's process does, with the tokenizing in between."""

from services.inference.engine.engine_loop import Loop
from services.inference.engine.engine_messages import CancelGeneration, GenerationAccepted, GenerationRefused, StartGeneration
from shared import errors


def handle(loop: Loop, command: StartGeneration | CancelGeneration) -> GenerationAccepted | GenerationRefused | None:
    if isinstance(command, CancelGeneration):
        loop.cancel(command.id)
        return None
    try:
        loop.measure(command)
        tokens = loop.tokenize(command)
    except errors.BadRequest as error:
        return GenerationRefused(command.id, error.to_problem())
    return loop.begin(command, tokens)
