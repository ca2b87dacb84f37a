"""Checks requests and turns them into jobs for a backend.  Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from services.inference.engine import sampling
from services.inference.engine.engine_messages import PreparedPrompt
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api import embedding, inference
from shared.api.embedding import EmbeddingInput
from shared.api.generation import (
    MAX_PROMPT_BYTES,
    MAX_TEMPLATE_KWARGS_BYTES,
    SUFFIX_ROLE,
    ChatMessage,
    ImagePart,
    Sampling,
    ToolChoice,
)
from shared.types import ModelName

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrigin:
    """What a request over the mesh has and one over HTTP lacks."""

    #: The request's id, the same on every worker.
    request: str = ""
    #: Prompts with the same salt may share their KV cache; empty shares with none.
    salt: str = ""
    #: Token ids that another worker already delivered.
    delivered: tuple[int, ...] = ()
    #: What that worker computed them with.
    numerics: str = ""
    #: ``max_tokens`` is only the gateway's own bound.
    open_ended: bool = False
    #: Live jobs go first.
    is_batch: bool = False


NO_ORIGIN = JobOrigin()


@dataclass(frozen=True, slots=True)
class GenerationJob(JobOrigin):
    model: ModelName
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    #: The caller's own parameters, without our defaults.
    requested: Sampling = field(default_factory=Sampling)
    #: Further variables of the chat template.
    template_variables: Mapping[str, object] = field(default_factory=dict)
    #: The number of the model's adapter that answers; 0 for none.
    adapter: int = 0
    #: For the engine, once the chat process has rendered it.
    prompt: PreparedPrompt = field(default=PreparedPrompt(""))

    @property
    def asked_tokens(self) -> int | None:
        """Return what to ask another server for; None for what fits its context."""
        most = self.parameters.max_tokens
        return None if self.open_ended or most is None else most - len(self.delivered)

    def with_defaults(self, **defaults: float | None) -> "GenerationJob":
        """Set the parameters that the model's catalog entry has and the caller has not."""
        unset = {name: value for name, value in defaults.items() if value is not None and getattr(self.requested, name) is None}
        return replace(self, parameters=msgspec.structs.replace(self.parameters, **unset)) if unset else self


def check_prompt(
    model: ModelName,
    prompt: str | tuple[ChatMessage, ...],
    requested: Sampling,
    *,
    context_tokens: int | None,
    draw_seed: Callable[[], int],
    origin: JobOrigin = NO_ORIGIN,
) -> GenerationJob:
    """Raises BadRequest, which names the field. A plain prompt becomes a chat of one user message: `aicli infer "Say hello"`
    asks for an answer, not for a continuation."""
    messages = (ChatMessage("user", prompt),) if isinstance(prompt, str) else prompt
    _check_messages(messages, is_raw=requested.raw)
    parameters = sampling.check(requested, context_tokens=context_tokens, draw_seed=draw_seed)
    _check_together(requested, parameters, origin)
    if requested.raw and tuple(message.role for message in messages[1:]) not in ((), (SUFFIX_ROLE,)):
        raise errors.BadRequest("raw allows one message, and messages has more", hint="send prompt, not messages")
    if requested.raw and any(message.images for message in messages):
        raise errors.BadRequest("raw and images exclude each other: images are for chats", hint="send messages")
    variables = _template_variables(requested.chat_template_kwargs)
    of_origin = {name: getattr(origin, name) for name in JobOrigin.__slots__}
    return GenerationJob(model, messages, parameters, requested, **of_origin, template_variables=variables)


def _template_variables(text: str) -> dict[str, object]:
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_TEMPLATE_KWARGS_BYTES:
        raise errors.BadRequest(f"chat_template_kwargs has {size} bytes; at most {MAX_TEMPLATE_KWARGS_BYTES} are allowed")
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise errors.BadRequest("chat_template_kwargs must be a JSON object") from None


def _check_together(requested: Sampling, parameters: Parameters, origin: JobOrigin) -> None:
    if requested.tools and requested.format is not None and not requested.format.is_json:
        raise errors.BadRequest("format: only JSON works together with tools", hint="give one of them")
    if requested.tool_choice is ToolChoice.REQUIRED and not requested.tools:
        raise errors.BadRequest("tool_choice requires a call, but tools is empty")
    if requested.raw and requested.tools:
        raise errors.BadRequest("raw and tools exclude each other: tools are for chats", hint="give one of them")
    if parameters.ignore_eos and (requested.format is not None or requested.tool_choice is ToolChoice.REQUIRED):
        raise errors.BadRequest("ignore_eos and format exclude each other: a format has an end", hint="give one of them")
    if origin.delivered and parameters.n > 1:
        raise errors.BadRequest("delivered: only a single answer can be continued, and n asks for more")


def _check_messages(messages: tuple[ChatMessage, ...], *, is_raw: bool = False) -> None:
    if not any(message.content.strip() or message.tool_calls or message.images for message in messages):
        raise errors.BadRequest("the prompt is empty", hint="send a prompt, or at least one message with content")
    for position, message in enumerate(messages):
        places = [0, *(image.at for image in message.images), len(message.content)]
        if places != sorted(places):
            raise errors.BadRequest(f"messages[{position}].images must be in the order of their places")
        if message.role not in ROLES and not (is_raw and message.role == SUFFIX_ROLE):
            raise errors.BadRequest(f"messages[{position}].role must be one of {', '.join(ROLES)}, not {message.role[:40]!r}")


def check_texts(request: embedding.Embed) -> None:
    """Raises BadRequest, which names the field. The gateway checks the same, but a worker trusts no caller."""
    _check_inputs(request.inputs, embedding.MAX_INPUT_BYTES, request.query or "")
    if request.query is not None and not all(isinstance(text, str) for text in request.inputs):
        raise errors.BadRequest("query and documents must be texts")


def check_moderation(request: inference.Moderate) -> None:
    """Raises BadRequest, which names the field. The gateway checks the same, but a worker trusts no caller."""
    _check_inputs(request.texts, MAX_PROMPT_BYTES)


def _check_inputs(inputs: Sequence[EmbeddingInput], most_bytes: int, query: str = "") -> None:
    size = sum(map(embedding.input_bytes, (query, *inputs)))
    if size > most_bytes:
        raise errors.BadRequest(f"input has {size} bytes; at most {most_bytes} are allowed", hint="send fewer texts at once")


def check_conversion(request: inference.Conversion) -> None:
    """Raises BadRequest, which names the field. The gateway checks the same, but a worker trusts no caller."""
    if isinstance(request, inference.Tokenize) and request.raw:
        if not request.messages:
            raise errors.BadRequest("prompt is missing")
    elif not isinstance(request, inference.Detokenize):
        _check_messages(request.messages)


def with_instructions_of_user(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Let the user give the instructions that don't come first: many chat templates refuse, drop or move them. They join the messages
    around them, because some templates require that roles alternate."""
    groups: list[list[ChatMessage]] = []
    joins = has_begun = False
    for message in messages:
        is_system = message.role == "system"
        has_begun = has_begun or not is_system
        given = msgspec.structs.replace(message, role="user") if is_system and has_begun else message
        if groups and groups[-1][0].role == given.role and (joins or is_system):
            groups[-1].append(given)
        else:
            groups.append([given])
        joins = is_system
    return tuple(group[0] if len(group) == 1 else _joined(group) for group in groups)


def _joined(messages: list[ChatMessage]) -> ChatMessage:
    between, images, at = "\n\n", list[ImagePart](), 0
    for message in messages:
        images += [msgspec.structs.replace(image, at=at + image.at) for image in message.images]
        at += len(message.content) + len(between)
    return msgspec.structs.replace(messages[0], content=between.join(one.content for one in messages), images=tuple(images))
