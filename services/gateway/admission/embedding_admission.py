"""Whether a request for embeddings may go to a worker as it is. Pure. As `prompt_admission` for prompts; the worker checks again."""

from dataclasses import dataclass

from services.gateway.admission.prompt_admission import BYTES_IN_A_TOKEN, MAX_MODEL_CHARACTERS, BadField
from shared import errors
from shared.api.embedding import MAX_DIMENSIONS, MAX_INPUT_BYTES, MAX_INPUTS, EmbeddingRequest
from shared.types import ModelName

#: Tokens that a model may add around each text.
_ADDED_TOKENS = 4


@dataclass(frozen=True, slots=True)
class AdmittedEmbedding:
    """A request that keeps to every limit."""

    inputs: tuple[str, ...]
    #: As the caller named it; None for the default.
    model: ModelName | None
    dimensions: int | None
    input_bytes: int

    @property
    def most_prompt_tokens(self) -> int:
        """No tokenizer makes more tokens than bytes, so a worker that claims more is not believed."""
        return self.input_bytes + _ADDED_TOKENS * len(self.inputs)

    @property
    def likely_prompt_tokens(self) -> int:
        """As of a prompt."""
        return self.input_bytes // BYTES_IN_A_TOKEN + _ADDED_TOKENS * len(self.inputs)


def admit(request: EmbeddingRequest) -> AdmittedEmbedding:
    """Raises BadRequest that names the field, or TooLarge."""
    if not request.inputs:
        raise BadField("input", "is empty")
    if len(request.inputs) > MAX_INPUTS:
        raise BadField("input", f"must have at most {MAX_INPUTS} texts, not {len(request.inputs)}; send them in several requests")
    for position, text in enumerate(request.inputs):
        if not text:
            raise BadField(f"input[{position}]" if len(request.inputs) > 1 else "input", "is empty")
    size = sum(len(text.encode()) for text in request.inputs)
    if size > MAX_INPUT_BYTES:
        raise errors.TooLarge(f"the texts have {size} bytes; at most {MAX_INPUT_BYTES} are taken", hint="send fewer texts at once")
    if request.dimensions is not None and not 0 < request.dimensions <= MAX_DIMENSIONS:
        raise BadField("dimensions", f"must be a whole number from 1 to {MAX_DIMENSIONS}")
    if request.model is not None and not 0 < len(request.model) <= MAX_MODEL_CHARACTERS:
        raise BadField("model", f"must have 1 to {MAX_MODEL_CHARACTERS} characters")
    return AdmittedEmbedding(request.inputs, request.model, request.dimensions, size)
