"""Validates requests: prompts, and texts for embeddings. Pure.

Their numbers are within the bounds of their types, which decoding checks at each border: nothing reaches an engine unchecked
(CVE-2026-21869 was one number passed straight through).
"""

import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.facts.image_digests import without_image_data
from services.gateway.facts.token_size import BYTES_IN_A_TOKEN
from services.gateway.requests import image_tokens
from shared import errors
from shared.api.embedding import (
    MAX_INPUT_BYTES,
    TOKEN_ID_BYTES,
    EmbeddingInput,
    EmbeddingRequest,
    RankingRequest,
    input_bytes,
)
from shared.api.gateway import InferenceRequest
from shared.api.generation import (
    MAX_MESSAGES,
    MAX_PROMPT_BYTES,
    MAX_READ_MESSAGES,
    MAX_TEMPLATE_KWARGS_BYTES,
    SUFFIX_ROLE,
    ChatMessage,
    FormatKind,
    Tool,
    ToolChoice,
)
from shared.api.inference import Conversion, Detokenize, Tokenize
from shared.types import ModelName, TenantId

#: The longest answer; a higher max_tokens is lowered to it, or to the model's context.
MAX_ANSWER_TOKENS = 32768
ROLES = ("system", "user", "assistant", "tool")
MAX_TOOL_NAME = 64
#: OpenAI's pattern; models repeat the names, some in their own syntax.
_TOOL_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TOOL_NAME}}}")

#: On average. Prose has up to five, and deeply indented code six.
_MAX_CHARACTERS_IN_A_TOKEN = 8
#: Tokens that a chat template may add to each message and each tool, and once in total.
_TEMPLATE_TOKENS_PER_MESSAGE, _TEMPLATE_TOKENS_PER_TOOL, _TEMPLATE_TOKENS = 16, 64, 256


def ensure_messages(messages: Sequence[object], most: int = MAX_MESSAGES) -> None:
    """Raise ContextExceeded for too many messages. Call it before a loop over them, too."""
    if len(messages) > most:
        raise errors.ContextExceeded.because(f"{len(messages)} messages > {most} maximum", hint="shorten the conversation")


def _ensure_size(size: int) -> None:
    if size > MAX_PROMPT_BYTES:
        raise errors.ContextExceeded.because(f"{size} bytes > {MAX_PROMPT_BYTES} maximum", hint="shorten or split it")


class Admitted(msgspec.Struct, frozen=True):
    """What a valid request asks a model to read: chat messages, or texts."""

    content: tuple[ChatMessage, ...] | tuple[EmbeddingInput, ...]
    #: A prompt has at most one token per byte, so a higher claim isn't believed.
    most_prompt_tokens: int
    #: For limits, which are later settled by the real number. The byte bound would refuse long prompts.
    likely_prompt_tokens: int
    #: A prompt has hardly ever fewer. Workers count exactly; this is for what no model could read.
    least_prompt_tokens: int = 0
    images: int = 0
    #: It contains no earlier answer.
    begins_conversation: bool = False


def admit(request: InferenceRequest) -> Admitted:
    """Validate a prompt. Raises BadRequest that names the field, or ContextExceeded."""
    messages = _messages(request)
    for position, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise BadField(f"messages[{position}].role", f"must be one of {', '.join(ROLES)}")
    size = sum(map(_bytes, messages)) + sum(map(_tool_bytes, request.tools))
    _ensure_size(size)
    if request.tools or request.tool_choice is ToolChoice.REQUIRED:
        _check_tools(request)
    if request.chat_template_kwargs:
        _check_template_kwargs(request.chat_template_kwargs)
    template = _TEMPLATE_TOKENS_PER_MESSAGE * len(messages) + _TEMPLATE_TOKENS_PER_TOOL * len(request.tools)
    images = [image for message in messages for image in message.images]
    most = size + template + _TEMPLATE_TOKENS + sum(map(image_tokens.most_tokens, images))
    likely = (size - _forgotten_bytes(messages)) // BYTES_IN_A_TOKEN + template + sum(map(image_tokens.likely_tokens, images))
    # Templates may leave thoughts out.
    characters = sum(len(message.content) for message in messages)
    characters += sum(len(tool.description) + len(tool.parameters) for tool in request.tools)
    begins = all(message.role != "assistant" for message in messages)
    return Admitted(messages, most, likely, characters // _MAX_CHARACTERS_IN_A_TOKEN, len(images), begins)


_BLANKS = bytes(0x20 if chr(byte).isspace() and byte < 0x80 else 0x78 for byte in range(256))


def count_words(prompt: str | Sequence[ChatMessage]) -> int:
    """Return a lower bound for a prompt that nobody has counted: tokenizers split at white space, so a word has at least one token."""
    texts = (prompt,) if isinstance(prompt, str) else [message.content for message in prompt]
    # A list of all words would take 70 ms and 80 MB for the longest prompt.
    return sum((b" " + text.encode().translate(_BLANKS)).count(b" x") for text in texts)


def ensure_fits(admitted: Admitted, contexts: Collection[int]) -> None:
    """Raise ContextExceeded for a prompt that is larger than all of these contexts; 0 is unknown."""
    if contexts and 0 not in contexts and admitted.least_prompt_tokens >= max(contexts):
        raise too_long(admitted.likely_prompt_tokens, max(contexts))


def too_long(prompt_tokens: int, context_tokens: int) -> errors.ContextExceeded:
    hint = "shorten the conversation, or choose a model with a longer context"
    return errors.ContextExceeded.of_tokens(prompt_tokens, context_tokens, hint=hint)


def _messages(request: InferenceRequest) -> tuple[ChatMessage, ...]:
    """Return the messages; a plain prompt becomes a chat of one message, as with Ollama."""
    if request.prompt is None and not request.messages:
        raise BadField("prompt", "is missing; send prompt or messages")
    if request.prompt is not None:
        return _prompt_messages(request, request.prompt)
    if request.suffix:
        raise BadField("suffix", "requires prompt instead of messages")
    if request.system is not None:
        raise BadField("system", "requires prompt; with messages, use a message with role system")
    if request.raw:
        raise BadField("raw", "requires prompt instead of messages")
    ensure_messages(request.messages, MAX_READ_MESSAGES)
    if not any(message.content.strip() or message.tool_calls or message.images for message in request.messages):
        raise BadField("messages", "have no text")
    return request.messages


def _prompt_messages(request: InferenceRequest, prompt: str) -> tuple[ChatMessage, ...]:
    if request.messages:
        raise BadField("prompt", "and messages exclude each other; send only one")
    if not (prompt + request.suffix).strip():
        raise BadField("prompt", "is empty")
    if request.suffix:
        if not request.raw or request.system:
            raise BadField("suffix", "requires raw, without system")
        return ChatMessage("user", prompt), ChatMessage(SUFFIX_ROLE, request.suffix)
    if request.raw and (request.system or request.tools):
        raise BadField("raw", "allows only a prompt, without system and tools")
    system = (ChatMessage("system", request.system),) if request.system else ()
    return (*system, ChatMessage("user", prompt))


#: The field of OpenAI's API for each format that isn't JSON; the last two are vLLM's.
GUIDES = {FormatKind.GBNF: "grammar", FormatKind.REGEX: "guided_regex", FormatKind.CHOICE: "guided_choice"}


def _check_tools(request: InferenceRequest) -> None:
    names = [tool.name for tool in request.tools]
    for position, name in enumerate(names):
        if not _TOOL_NAME.fullmatch(name):
            raise BadField(f"tools[{position}].function.name", f"must be 1 to {MAX_TOOL_NAME} letters, digits, _ or -")
    if len(set(names)) < len(names):
        raise BadField("tools", "must have unique names")
    if request.tool_choice is ToolChoice.REQUIRED and not names:
        raise BadField("tool_choice", "requires a call, but tools is empty")
    if request.tools and request.format is not None and not request.format.is_json:
        raise BadField(GUIDES[request.format.kind], "and tools exclude each other; send only one")


def _check_template_kwargs(encoded: str) -> None:
    if (size := len(encoded.encode())) > MAX_TEMPLATE_KWARGS_BYTES:
        raise BadField("chat_template_kwargs", f"must have at most {MAX_TEMPLATE_KWARGS_BYTES} bytes as JSON, not {size}")
    try:
        msgspec.json.decode(encoded, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadField("chat_template_kwargs", "must be a JSON object") from error


def _bytes(message: ChatMessage) -> int:
    return len((message.content + message.reasoning).encode()) + sum(
        len((call.name + call.arguments).encode()) for call in message.tool_calls
    )


def _forgotten_bytes(messages: Sequence[ChatMessage]) -> int:
    """Return the size of the thoughts before the last question, which most templates leave out."""
    question = max((position for position, message in enumerate(messages) if message.role == "user"), default=0)
    return sum(len(message.reasoning.encode()) for message in messages[:question])


def _tool_bytes(tool: Tool) -> int:
    return len((tool.name + tool.description + tool.parameters).encode())


#: Tokens that a model may add to each text.
_ADDED_TOKENS = 4


def _size_of(texts: Sequence[EmbeddingInput], most_bytes: int, more_bytes: int = 0) -> int:
    """Return their size with ``more_bytes``. Raises TooLarge."""
    if (size := sum(map(input_bytes, texts)) + more_bytes) > most_bytes:
        raise errors.TooLarge(f"the texts have {size} bytes; the limit is {most_bytes}", hint="send fewer texts per request")
    return size


def admit_texts(request: EmbeddingRequest) -> Admitted:
    """Raises TooLarge."""
    size = _size_of(request.inputs, MAX_INPUT_BYTES)
    ids = sum(len(given) for given in request.inputs if not isinstance(given, str))
    text_bytes = size - ids * TOKEN_ID_BYTES
    counted = ids + _ADDED_TOKENS * len(request.inputs)
    return Admitted(request.inputs, text_bytes + counted, text_bytes // BYTES_IN_A_TOKEN + counted)


#: Tokens that a template for ranking may add to each pair.
_PAIR_TOKENS = 256


def admit_ranking(request: RankingRequest) -> Admitted:
    """Return them; ``inputs`` begins with the query. Raises TooLarge."""
    query, pairs = input_bytes(request.query), len(request.documents)
    # Each document is read with the query before it.
    read = _size_of(request.documents, MAX_INPUT_BYTES, query) + query * (pairs - 1)
    return Admitted((request.query, *request.documents), read + _PAIR_TOKENS * pairs, read // BYTES_IN_A_TOKEN + _ADDED_TOKENS * pairs)


#: Tokens that Llama Guard's template and verdict may add to each text.
_GUARD_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ModerationRequest:
    texts: tuple[str, ...]
    #: A route; None for the only route that moderates.
    model: ModelName | None = None
    #: Keep the texts from providers, even if policies allow them.
    forbid_external: bool = False
    #: A policy checks another request. The caller has not chosen the route, and its limits have already counted the request.
    by_policy: bool = False


def admit_moderation(request: ModerationRequest) -> Admitted:
    """Raises TooLarge."""
    size = _size_of(request.texts, MAX_PROMPT_BYTES)
    added = _ADDED_TOKENS * len(request.texts)
    return Admitted(request.texts, size + added + _GUARD_TOKENS * len(request.texts), size // BYTES_IN_A_TOKEN + added)


def check_conversion(request: Conversion) -> None:
    """Validate a chat, text or token ids, within the bounds of prompts. Raises BadRequest that names the field, or ContextExceeded."""
    is_raw = isinstance(request, Tokenize) and request.raw
    if not isinstance(request, Detokenize) and any(message.images for message in request.messages):
        raise BadField("messages", "have images, whose tokens only an answer counts; leave them out")
    if not isinstance(request, Detokenize) and not is_raw:
        admit(InferenceRequest(messages=request.messages, tools=request.tools))
        return
    _ensure_size(len(request.token_ids) if isinstance(request, Detokenize) else sum(map(_bytes, request.messages)))


def fingerprint(content: Sequence[ChatMessage] | Sequence[EmbeddingInput], secret: str) -> str:
    """Return the keyed hash of a prompt for request_logs: 64 hex digits, equal for equal conversations. A plain hash would not do,
    because a short prompt can be guessed."""
    return hmac.digest(secret.encode(), msgspec.msgpack.encode([without_image_data(each) for each in content]), "sha256").hex()


@lru_cache(maxsize=4096)  # active tenants; an entry takes about 200 bytes
def prompt_salt(tenant: TenantId, secret: str) -> str:
    """Return the token that tells a worker which prompts may share computed state, without naming the tenant."""
    return hmac.digest(secret.encode(), b"salt:" + str(tenant).encode(), "sha256").hex()[:32]
