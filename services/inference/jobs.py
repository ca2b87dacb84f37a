"""What a backend is asked to generate: a request of the contract, checked and complete.  Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from services.inference.engine import sampling
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.generation import ChatMessage, Sampling
from shared.types import ModelName

ROLES = ("system", "user", "assistant")
#: A mesh message is at most 1 MiB, and a longer prompt fits no context that this engine can hold.
MAX_PROMPT_CHARACTERS = 1024 * 1024
MAX_MESSAGES = 1024


@dataclass(frozen=True, slots=True)
class Job:
    model: ModelName
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    #: What the caller named, without our defaults.
    asked: Sampling = Sampling()
    #: Whose prompts may share what is computed of them; empty shares with nobody.
    salt: str = ""
    #: Token ids of an answer that another worker began.
    delivered: tuple[int, ...] = ()
    #: GBNF that the answer must follow; empty for none. It has been checked.
    grammar: str = ""


def check(
    model: ModelName, prompt: str | tuple[ChatMessage, ...], asked: Sampling, *, context_tokens: int | None, draw_seed: Callable[[], int]
) -> Job:
    """Raises BadRequest, which names the field. A plain prompt is a chat of one user message: whoever writes
    `aicli infer "Say hello"` expects an answer and not a continuation."""
    messages = (ChatMessage("user", prompt),) if isinstance(prompt, str) else prompt
    _check_messages(messages)
    return Job(model, messages, sampling.check(asked, context_tokens=context_tokens, draw_seed=draw_seed))


def _check_messages(messages: tuple[ChatMessage, ...]) -> None:
    if not any(message.content.strip() for message in messages):
        raise errors.BadRequest("the prompt is empty", hint="send a prompt, or messages of which one has content")
    if len(messages) > MAX_MESSAGES:
        raise errors.BadRequest(f"messages holds {len(messages)} messages; at most {MAX_MESSAGES} are taken")
    characters = sum(len(message.content) for message in messages)
    if characters > MAX_PROMPT_CHARACTERS:
        raise errors.BadRequest(f"the prompt has {characters} characters; at most {MAX_PROMPT_CHARACTERS} are taken")
    for position, message in enumerate(messages):
        if message.role not in ROLES:
            raise errors.BadRequest(f"messages[{position}].role must be one of {', '.join(ROLES)}, not {message.role[:40]!r}")
