"""Pass commands to a loop like the engine's process, including tokenization."""

from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import CancelGeneration, GenerationAccepted, GenerationRefused, StartGeneration
from shared import errors


def handle(loop: EngineLoop, command: StartGeneration | CancelGeneration) -> GenerationAccepted | GenerationRefused | None:
    if isinstance(command, CancelGeneration):
        loop.cancel(command.id)
        return None
    try:
        loop.measure(command)
        tokens = loop.tokenize(command)
    except (errors.BadRequest, errors.Unavailable) as error:
        return GenerationRefused(command.id, error.to_problem())
    return loop.begin(command, tokens)
