"""What a backend is asked to generate: a request of the contract, checked and complete.  Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.inference.engine import sampling
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.generation import ChatMessage, Sampling, ToolChoice
from shared.types import ModelName

ROLES = ("system", "user", "assistant", "tool")
MAX_TOOLS = 128
#: A mesh message is at most 1 MiB, and a longer prompt fits no context that this engine can hold.
MAX_PROMPT_CHARACTERS = 1024 * 1024
MAX_MESSAGES = 1024


@dataclass(frozen=True, slots=True)
class GenerationJob:
    model: ModelName
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    #: What the caller named, without our defaults.
    asked: Sampling = field(default_factory=Sampling)
    #: Whose prompts may share what is computed of them; empty shares with nobody.
    salt: str = ""
    #: Token ids of an answer that another worker began.
    delivered: tuple[int, ...] = ()
    #: GBNF that the answer must follow; empty for none. It has been checked.
    grammar: str = ""
    #: Of the request, wherever it runs.
    request: str = ""


@dataclass(frozen=True, slots=True)
class JobOrigin:
    """Where a request comes from, as far as a worker may know."""

    #: Of the request, wherever it runs.
    request: str = ""
    salt: str = ""
    delivered: tuple[int, ...] = ()


#: Of a request that came by HTTP: it shares with nobody and is nowhere gone on with.
NOWHERE = JobOrigin()


def check(
    model: ModelName,
    prompt: str | tuple[ChatMessage, ...],
    asked: Sampling,
    *,
    context_tokens: int | None,
    draw_seed: Callable[[], int],
    origin: JobOrigin = NOWHERE,
) -> GenerationJob:
    """Raises BadRequest, which names the field. A plain prompt is a chat of one user message: whoever writes
    `aicli infer "Say hello"` expects an answer and not a continuation."""
    messages = (ChatMessage("user", prompt),) if isinstance(prompt, str) else prompt
    _check_messages(messages)
    parameters = sampling.check(asked, context_tokens=context_tokens, draw_seed=draw_seed)
    _check_together(asked, parameters, origin)
    if asked.raw and len(messages) > 1:
        raise errors.BadRequest("raw takes one text, and messages has more", hint="send prompt, not messages")
    return GenerationJob(model, messages, parameters, asked, origin.salt, origin.delivered, request=origin.request)


def _check_together(asked: Sampling, parameters: Parameters, origin: JobOrigin) -> None:
    """What excludes each other."""
    if asked.tools and asked.format is not None:
        raise errors.BadRequest("format and tools exclude each other", hint="give one of them")
    if len(asked.tools) > MAX_TOOLS:
        raise errors.BadRequest(f"tools holds {len(asked.tools)} tools; at most {MAX_TOOLS} are taken")
    if asked.tool_choice is ToolChoice.REQUIRED and not asked.tools:
        raise errors.BadRequest("tool_choice asks for a call, and tools is empty")
    if asked.raw and asked.tools:
        raise errors.BadRequest("raw and tools exclude each other: tools are for chats", hint="give one of them")
    if parameters.ignore_eos and (asked.format is not None or asked.tool_choice is ToolChoice.REQUIRED):
        raise errors.BadRequest("ignore_eos and format exclude each other: a format has an end", hint="give one of them")
    if origin.delivered and parameters.n > 1:
        raise errors.BadRequest("delivered: only one answer can be gone on with, and n asks for more")
    if any(not 0 <= token <= sampling.MAX_TOKEN_ID for token in origin.delivered):
        raise errors.BadRequest("delivered: a token id is not one")


def _check_messages(messages: tuple[ChatMessage, ...]) -> None:
    if not any(message.content.strip() or message.tool_calls for message in messages):
        raise errors.BadRequest("the prompt is empty", hint="send a prompt, or messages of which one has content")
    if len(messages) > MAX_MESSAGES:
        raise errors.BadRequest(f"messages holds {len(messages)} messages; at most {MAX_MESSAGES} are taken")
    characters = sum(len(message.content) for message in messages)
    if characters > MAX_PROMPT_CHARACTERS:
        raise errors.BadRequest(f"the prompt has {characters} characters; at most {MAX_PROMPT_CHARACTERS} are taken")
    for position, message in enumerate(messages):
        if message.role not in ROLES:
            raise errors.BadRequest(f"messages[{position}].role must be one of {', '.join(ROLES)}, not {message.role[:40]!r}")
