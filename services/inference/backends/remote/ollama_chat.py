"""Builds the request for Ollama's POST /api/chat and parses the lines of its response.  Pure.

Ollama ignores unknown parameters, so unsupported ones are refused here.
"""

import re
from collections.abc import Callable, Mapping

import msgspec

from services.inference.backends.remote.event_stream import BadStream
from services.inference.backends.remote.openai_answer import MAX_ARGUMENT_CHARACTERS, MAX_TOOL_CALLS
from services.inference.backends.remote.openai_chat import JsonObject, decoded, refused, tool
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, ToolCall, ToolChoice
from shared.types import FinishReason

SERVER = "Ollama"

#: Fields of Sampling that Ollama calls the same.
_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty")
#: Ollama's engine has a signed 32-bit seed.
_SEED_MASK = 0x7FFF_FFFF
_LACKS = "has no such option"

_NUMBER = re.compile(r"-?[0-9]{1,9}\Z")
_DURATION = re.compile(r"-?([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)){1,3}\Z")


class _Function(msgspec.Struct, frozen=True):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _OllamaCall(msgspec.Struct, frozen=True):
    function: _Function
    id: str = ""


class _OllamaMessage(msgspec.Struct, frozen=True):
    content: str = ""
    #: A reasoning model's thoughts: not part of the answer, but progress.
    thinking: str | None = None
    tool_calls: tuple[_OllamaCall, ...] | None = None


class OllamaLine(msgspec.Struct, frozen=True):
    """One line of the response; the last one is ``done`` and has the counts."""

    message: _OllamaMessage = _OllamaMessage()
    done: bool = False
    done_reason: str = "stop"
    prompt_eval_count: object = None
    eval_count: object = None
    error: object = None

    @property
    def is_progress(self) -> bool:
        return bool(self.message.content or self.message.thinking or self.message.tool_calls or self.done)

    @property
    def finish_reason(self) -> FinishReason:
        return FinishReason.LENGTH if self.done_reason == "length" else FinishReason.STOP


_line = msgspec.json.Decoder(OllamaLine)


def keep_alive(text: str) -> int | str:
    """Parse OLLAMA_KEEP_ALIVE: a number of seconds, or a duration such as 10m. Raises BadSettings."""
    if _NUMBER.match(text):
        # Ollama refuses a string without a unit.
        return int(text)
    if _DURATION.match(text):
        return text
    raise errors.BadSettings(
        f"OLLAMA_KEEP_ALIVE: {text[:40]!r} is not a duration", hint="write 10m, 1h30m, 0 to unload at once, or -1 for always"
    )


def body(model: str, messages: tuple[ChatMessage, ...], asked: Sampling, *, max_tokens: int, keep: int | str | None) -> bytes:
    """Raises BadRequest, which names the field that Ollama doesn't support."""
    _check(asked)
    request: JsonObject = {
        "model": model,
        "messages": _messages(messages),
        "stream": True,
        # By default Ollama silently drops the beginning of a prompt that is too long, at once or later.
        "truncate": False,
        "shift": False,
        "options": _options(asked, max_tokens),
        **_format(asked.format),
    }
    if asked.tools and asked.tool_choice is not ToolChoice.NONE:
        request["tools"] = [tool(position, offered) for position, offered in enumerate(asked.tools)]
    if keep is not None:
        request["keep_alive"] = keep
    return msgspec.json.encode(request)


def line(text: bytes) -> OllamaLine:
    """Raises one of `event_stream.UNREADABLE`."""
    return _line.decode(text)


def calls(said: OllamaLine, draw_id: Callable[[], str]) -> tuple[ToolCall, ...]:
    """Return the tool calls in a line. Raises BadStream."""
    found = said.message.tool_calls or ()
    if len(found) > MAX_TOOL_CALLS or sum(len(bytes(call.function.arguments)) for call in found) > MAX_ARGUMENT_CHARACTERS:
        raise BadStream(f"more than {MAX_TOOL_CALLS} tool calls, or {MAX_ARGUMENT_CHARACTERS} characters in them")
    return tuple(ToolCall(call.id or draw_id(), call.function.name, bytes(call.function.arguments).decode()) for call in found)


def _check(asked: Sampling) -> None:
    lacking: Mapping[str, bool] = {
        "raw": asked.raw,
        "logit_bias": bool(asked.logit_bias),
        "ignore_eos": asked.ignore_eos,
        "n": asked.n not in (None, 1),
        "top_logprobs": asked.top_logprobs is not None,
        "tool_choice": bool(asked.tools) and asked.tool_choice is ToolChoice.REQUIRED,
    }
    for field, is_asked in lacking.items():
        if is_asked:
            raise refused(SERVER, _LACKS, field)


def _options(asked: Sampling, max_tokens: int) -> JsonObject:
    options: JsonObject = {name: value for name in _OPTIONS if (value := getattr(asked, name)) is not None}
    options["num_predict"] = max_tokens
    if asked.seed is not None:
        options["seed"] = asked.seed & _SEED_MASK
    if asked.stop:
        options["stop"] = list(asked.stop)
    return options


def _format(asked: OutputFormat | None) -> JsonObject:
    if asked is None:
        return {}
    if asked.kind is FormatKind.GBNF:
        raise refused(SERVER, "does not support GBNF grammars", "format")
    return {"format": "json" if asked.kind is FormatKind.JSON else decoded("format.text", asked.text)}


def _messages(messages: tuple[ChatMessage, ...]) -> list[JsonObject]:
    """Convert messages: Ollama refers to a tool by its name, our API by the id of the call."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message(message, names) for message in messages]


def _message(message: ChatMessage, names: Mapping[str, str]) -> JsonObject:
    written: JsonObject = {"role": message.role, "content": message.content}
    if message.tool_calls:
        written["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": decoded("messages: the arguments of a tool call", call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        written |= {"tool_call_id": message.tool_call_id, "tool_name": names.get(message.tool_call_id, "")}
    return written
