"""inference: a worker's models, and a prompt run on one of them."""

from enum import StrEnum

from shared.api.generation import ChatMessage, Generation, Sampling
from shared.api.method import Body, Method, StreamMethod
from shared.types import ModelName, RequestId, Role


class ModelConfig(Sampling, frozen=True, kw_only=True):
    model: ModelName


class ProcessPrompt(Body, frozen=True):
    """Carries no user and no key: a worker never learns whose prompt it runs."""

    #: A plain prompt, or a chat that the model's own template turns into one.
    prompt: str | tuple[ChatMessage, ...]
    model_config: ModelConfig
    request_id: RequestId


class Accepted(Body, frozen=True):
    """The prompt is understood and queued; told before the first chunk, so that it is known for a cancelled call too."""

    #: The exact count of the model's own tokens.
    prompt_tokens: int


class Chunk(Body, frozen=True):
    """The text that one or more tokens gave; text may be empty while a character or a stop sequence is incomplete."""

    text: str
    #: The token ids behind it: what is counted, and what another worker would need to go on from here.
    token_ids: tuple[int, ...]


class ModelState(StrEnum):
    READY = "ready"
    LOADING = "loading"
    FAILED = "failed"


class ModelStatus(Body, frozen=True, omit_defaults=False):
    model_id: ModelName
    state: ModelState
    #: What is wrong, or what it waits for.
    detail: str
    backend: str
    context_tokens: int
    slots: int
    running: int
    queued: int
    #: SHA-256 of the model's file; empty where the backend has none to show.
    digest: str = ""


class ListAvailableModels(Body, frozen=True):
    pass


class AvailableModels(Body, frozen=True):
    models: tuple[ModelStatus, ...]


class GetModelStatus(Body, frozen=True):
    model_id: ModelName


LOOKERS = {Role.GATEWAY, Role.METRICS, Role.OPERATOR}

process_prompt = StreamMethod(
    "inference.processPrompt", ProcessPrompt, item=Chunk, end=Generation, callers={Role.GATEWAY}, accepted=Accepted
)
list_available_models = Method("inference.listAvailableModels", ListAvailableModels, AvailableModels, callers=LOOKERS)
get_model_status = Method("inference.getModelStatus", GetModelStatus, ModelStatus, callers=LOOKERS)
