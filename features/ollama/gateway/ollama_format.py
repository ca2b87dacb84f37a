"""Formats answers for Ollama's API. Pure."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import UNSET, UnsetType

from features.ollama.gateway import dialect
from features.ollama.gateway.ollama_request import OllamaChatBody, OllamaPromptBody
from services.gateway.http_api import chat_messages, response_formats
from services.gateway.http_api.chat_messages import JsonObject
from services.gateway.http_api.response_formats import ErrorBody, EventStream, ServerSentEvent, TokenChoice
from services.gateway.http_api.rest_format import RestFormat, TextEvent
from shared.api.gateway import InferenceResult, ServedModel
from shared.api.inference import Chunk
from shared.types import Ability, FinishReason, ModelName, Moment

#: Its clients ask for one before they use an API. This one was the first with all APIs that we have.
VERSION = "0.14.0"
LATEST = ":latest"
#: Our word -> Ollama's.
_CAPABILITIES = {Ability.TOOLS: "tools", Ability.IMAGES: "vision", Ability.REASONING: "thinking", Ability.INFILL: "insert"}
#: Of a millisecond.
NANOSECONDS = 1_000_000


class OllamaFunction(msgspec.Struct, frozen=True):
    index: int
    name: str
    arguments: JsonObject


class OllamaCall(msgspec.Struct, frozen=True):
    id: str
    function: OllamaFunction


class OllamaMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[OllamaCall, ...] = ()


class OllamaAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole answer, or a line of a stream. The counts are in the last one, the times in nanoseconds."""

    model: ModelName
    created_at: Moment
    done: bool
    #: Of a chat.
    message: OllamaMessage | None = None
    #: Of a generation.
    response: str | None = None
    thinking: str = ""
    logprobs: tuple[TokenChoice, ...] = ()
    done_reason: str = ""
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaEmbeddings(msgspec.Struct, frozen=True):
    model: ModelName
    embeddings: tuple[msgspec.Raw, ...] = ()
    total_duration: int = 0
    prompt_eval_count: int = 0
    load_duration: int = 0


class OllamaEmbedding(msgspec.Struct, frozen=True):
    embedding: msgspec.Raw


class OllamaDetails(msgspec.Struct, frozen=True):
    family: str = "aimesh"
    families: tuple[str, ...] = ("aimesh",)
    format: str = "gguf"
    parent_model: str = ""
    #: A mesh doesn't know the next two.
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    model: str
    digest: str
    modified_at: Moment
    expires_at: Moment
    context_length: int
    details: OllamaDetails = OllamaDetails()
    #: Each worker has its own file and its own memory.
    size: int = 0
    size_vram: int = 0
    #: Of a model whose prompts go to providers: its name, and the providers.
    remote_model: str | UnsetType = UNSET
    remote_host: str | UnsetType = UNSET


class OllamaModels(msgspec.Struct, frozen=True):
    models: tuple[OllamaModel, ...]


class OllamaShownModel(msgspec.Struct, frozen=True, kw_only=True):
    capabilities: tuple[str, ...]
    model_info: dict[str, str | int]
    modified_at: Moment
    details: OllamaDetails = OllamaDetails()
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""


class OllamaVersion(msgspec.Struct, frozen=True):
    version: str = VERSION


class OllamaPullStatus(msgspec.Struct, frozen=True):
    status: str = "success"


def find_model(served: Sequence[ServedModel], name: str) -> ServedModel | None:
    """Return the model of this name. Ollama's clients add a tag to names without one."""
    for wanted in (name, name.removesuffix(LATEST)):
        for model in served:
            if wanted == model.name or wanted in model.aliases:
                return model
    return None


def list_model(model: ServedModel, started_at: datetime) -> OllamaModel:
    name = model.name if ":" in model.name else model.name + LATEST
    digest = hashlib.sha256(name.encode()).hexdigest()
    details, providers = OllamaDetails(parent_model=model.parent or ""), ", ".join(model.providers)
    return OllamaModel(
        name=name, model=name, digest=digest, modified_at=started_at, expires_at=datetime.now(UTC) + timedelta(hours=1),
        context_length=model.context_tokens, details=details,
        remote_model=name if providers else UNSET, remote_host=providers or UNSET,
    )  # fmt: skip


def show_model(model: ServedModel, started_at: datetime) -> OllamaShownModel:
    first = "embedding" if model.only_embeds else "completion"
    capabilities = (first, *(word for ability, word in _CAPABILITIES.items() if ability in model.abilities))
    known: dict[str, str | int] = {"aimesh.context_length": model.context_tokens} if model.context_tokens else {}
    return OllamaShownModel(capabilities=capabilities, model_info={"general.architecture": "aimesh", **known}, modified_at=started_at)


class JsonLines(EventStream):
    """A JSON object on each line. A line without text is a sign of life."""

    media_type = dialect.DIALECT.media_type.encode()

    def __init__(self, empty: msgspec.Struct) -> None:
        self._empty = ServerSentEvent(empty)

    def write(self, event: ServerSentEvent, event_id: str | None) -> bytes:
        return response_formats.json_of(event) + b"\n"

    def write_comment(self, text: str) -> bytes:
        return self.write(self._empty, None)


class OllamaFormat(RestFormat):
    def __init__(self, body: OllamaPromptBody) -> None:
        super().__init__()
        self._model = body.model
        self._began = datetime.now(UTC)
        self._is_chat = isinstance(body, OllamaChatBody)
        self._shows_thoughts = body.think is not False
        #: How many calls the lines have.
        self._shown = 0
        self.stream = JsonLines(self._line(TextEvent("")))

    def events(self, chunk: Chunk) -> Sequence[ServerSentEvent]:
        if not self._shows_thoughts:
            chunk = msgspec.structs.replace(chunk, reasoning="")
        return [ServerSentEvent(self._line(piece)) for piece in self.take(chunk)]

    def last_events(self, result: InferenceResult) -> Sequence[ServerSentEvent]:
        return (ServerSentEvent(_ended(self._line(TextEvent("")), result)),)

    def failed(self, error: ErrorBody) -> Sequence[ServerSentEvent]:
        return (ServerSentEvent(dialect.error_body(error)),)

    def whole(self, result: InferenceResult) -> msgspec.Struct:
        self._shown = 0
        return _ended(self._line(self.joined()), result)

    def loaded(self) -> OllamaAnswer:
        """Return the answer to a request without a prompt."""
        return msgspec.structs.replace(self._line(TextEvent("")), done=True, done_reason="load")

    def _line(self, piece: TextEvent) -> OllamaAnswer:
        line = OllamaAnswer(model=self._model, created_at=self._began, done=False, logprobs=piece.logprobs)
        if not self._is_chat:
            return msgspec.structs.replace(line, response=piece.text, thinking=piece.reasoning)
        calls = tuple(
            OllamaCall(call.id, OllamaFunction(index, call.function.name, chat_messages.json_object(call.function.arguments) or {}))
            for index, call in enumerate(piece.tool_calls, self._shown)
        )
        self._shown += len(calls)
        return msgspec.structs.replace(line, message=OllamaMessage("assistant", piece.text, piece.reasoning, calls))


def _ended(part: OllamaAnswer, result: InferenceResult) -> OllamaAnswer:
    return msgspec.structs.replace(
        part,
        done=True,
        done_reason="length" if result.finish_reason is FinishReason.LENGTH else "stop",
        total_duration=result.response_time_ms * NANOSECONDS,
        load_duration=0,
        prompt_eval_count=result.usage.prompt_tokens,
        prompt_eval_duration=result.first_token_ms * NANOSECONDS,
        eval_count=result.usage.completion_tokens,
        eval_duration=max(1, result.response_time_ms - result.first_token_ms) * NANOSECONDS,
    )
