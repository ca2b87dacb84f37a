"""Builds the request for Ollama's POST /api/chat and assembles the lines of its response.  Pure.

Ollama ignores unknown parameters, so unsupported ones are refused here.
"""

import re
from collections.abc import Callable, Mapping

import msgspec

from services.inference.backends.remote.event_stream import BadStream
from services.inference.backends.remote.openai_answer import MAX_ARGUMENT_CHARACTERS, MAX_TOOL_CALLS, AnswerStep, ReportedUsage
from services.inference.backends.remote.openai_chat import JsonObject, ServerFields, decoded, plain, refused, same, tool, whole
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, ToolCall, ToolChoice
from shared.api.inference import Chunk
from shared.types import FinishReason

SERVER = "Ollama"

_OPTIONS = ServerFields(
    same("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "seed"),
    # Ollama's engine has a signed 32-bit seed.
    values={"seed": lambda value: whole(value) & 0x7FFF_FFFF},
)
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


class _OllamaLine(msgspec.Struct, frozen=True):
    """One line of the response; the last one is ``done`` and has the counts."""

    message: _OllamaMessage = _OllamaMessage()
    done: bool = False
    done_reason: str = "stop"
    prompt_eval_count: object = None
    eval_count: object = None
    error: object = None


_line = msgspec.json.Decoder(_OllamaLine)


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


class OllamaAssembly:
    """Assembles one answer from the lines of a response, as `openai_answer.AnswerAssembly` does from events."""

    def __init__(self, draw_id: Callable[[], str]) -> None:
        self._draw_id = draw_id
        self._reason: FinishReason | None = None
        self.usage: ReportedUsage | None = None
        #: The number of lines with text or a call: a lower bound of the tokens.
        self.pieces = 0

    @property
    def finished(self) -> bool:
        return self._reason is not None

    @property
    def complete(self) -> bool:
        """The last line has the usage too."""
        return self.finished

    def push(self, text: bytes) -> AnswerStep:
        """Raises BadStream or one of `event_stream.UNREADABLE`."""
        if not text or self.finished:
            return AnswerStep()
        line = _line.decode(text)
        if line.error is not None:
            return AnswerStep(complaint=text)
        if line.done:
            self._reason = FinishReason.LENGTH if line.done_reason == "length" else FinishReason.STOP
            self.usage = ReportedUsage(line.prompt_eval_count, line.eval_count)
        content, calls = line.message.content, self._calls(line.message.tool_calls or ())
        if content or calls:
            self.pieces += 1
            return AnswerStep((Chunk(content, (), tool_calls=calls),), is_progress=True)
        return AnswerStep(is_progress=bool(line.message.thinking or line.done))

    def reasons(self) -> tuple[FinishReason, ...]:
        """Return the finish reason. Raises BadStream if the answer didn't end."""
        if self._reason is None:
            raise BadStream("it closed the answer before its end")
        return (self._reason,)

    def _calls(self, found: tuple[_OllamaCall, ...]) -> tuple[ToolCall, ...]:
        if len(found) > MAX_TOOL_CALLS or sum(len(bytes(call.function.arguments)) for call in found) > MAX_ARGUMENT_CHARACTERS:
            raise BadStream(f"more than {MAX_TOOL_CALLS} tool calls, or {MAX_ARGUMENT_CHARACTERS} characters in them")
        return tuple(ToolCall(call.id or self._draw_id(), call.function.name, bytes(call.function.arguments).decode()) for call in found)


def _check(asked: Sampling) -> None:
    lacking: Mapping[str, bool] = {
        "raw": asked.raw,
        "top_logprobs": asked.top_logprobs is not None,
        "tool_choice": bool(asked.tools) and asked.tool_choice is ToolChoice.REQUIRED,
    }
    for field, is_asked in lacking.items():
        if is_asked:
            raise refused(SERVER, _LACKS, field)
    if asked.tools and asked.format is not None:
        raise refused(SERVER, "would write every answer in the format, and never call a tool", "format")


def _options(asked: Sampling, max_tokens: int) -> JsonObject:
    options = plain(SERVER, _LACKS, _OPTIONS, asked) | {"num_predict": max_tokens}
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
