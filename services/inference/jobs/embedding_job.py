"""Checks a request for embeddings and turns it into a job for a backend.  Pure."""

from dataclasses import dataclass

from shared import errors
from shared.api import embedding
from shared.types import ModelName


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    model: ModelName
    inputs: tuple[str, ...]
    dimensions: int | None = None


def check(model: ModelName, request: embedding.Embed) -> EmbeddingJob:
    """Raises BadRequest, which names the field. The gateway checks the same, but a worker trusts no caller."""
    if not 0 < len(request.inputs) <= embedding.MAX_INPUTS:
        raise errors.BadRequest(f"input holds {len(request.inputs)} texts; 1 to {embedding.MAX_INPUTS} are allowed")
    for number, text in enumerate(request.inputs):
        if not text:
            raise errors.BadRequest(f"input[{number}] is empty", hint="leave empty texts out")
    size = sum(len(text.encode("utf-8", "replace")) for text in request.inputs)
    if size > embedding.MAX_INPUT_BYTES:
        raise errors.BadRequest(f"input has {size} bytes; at most {embedding.MAX_INPUT_BYTES} are allowed", hint="send fewer texts at once")
    if request.dimensions is not None and not 0 < request.dimensions <= embedding.MAX_DIMENSIONS:
        raise errors.BadRequest(f"dimensions must be from 1 to {embedding.MAX_DIMENSIONS}, not {request.dimensions}")
    return EmbeddingJob(model, request.inputs, request.dimensions)
