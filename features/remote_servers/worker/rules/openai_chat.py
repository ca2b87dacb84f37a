"""Builds the request for OpenAI's POST /chat/completions in the dialect of a server.  Pure.

It sends only parameters that the caller set: a server's defaults suit its models better than ours. A parameter that the server
doesn't support is refused, never silently dropped.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from features.remote_servers.worker.rules import dialects
from features.remote_servers.worker.rules.dialects import ServerFields
from features.remote_servers.worker.rules.event_stream import UNREADABLE
from features.remote_servers.worker.upstreams import Dialect
from services.inference import jobs
from services.inference.jobs import GenerationJob
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool, ToolCall, ToolChoice

JsonObject = dict[str, object]

#: Fields of Sampling that are passed on as they are, apart from their name.
_PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "ignore_eos",
    "n", "reasoning_effort", "chat_template_kwargs",
)  # fmt: skip
_UNSET = Sampling()
#: Field -> the value without effect, which is left out rather than refused if a server lacks the field.
_NEUTRAL: Mapping[str, object] = {
    "top_k": 0,
    "min_p": 0,
    "repeat_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "n": 1,
}


def body(
    name: str, dialect: Dialect, model: str, job: GenerationJob, max_tokens: int | None, *, salt: str, has_priority: bool = False
) -> JsonObject:
    """``name`` is the server's name in error messages, ``model`` its name of the model, and ``salt`` that of a job without one.
    ``has_priority``: the server runs what has a lower priority first. Raises BadRequest, which names the field."""
    asked = job.requested
    names = dialects.DIALECTS[dialect].parameters
    check(name, "is only used for chats", ("raw",), asked)
    check(name, f"({dialect}) does not support it", names.ignored, asked)
    messages = job.messages if names.late_system else jobs.with_instructions_of_user(job.messages)
    request: JsonObject = {
        "model": model,
        "messages": [_message(message, names.reasoning) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **({} if max_tokens is None else {names.max_tokens: max_tokens}),
        **plain(name, f"({dialect}) does not support it", names, asked),
        # A required call is the whole answer, so the format does not matter.
        **_format(name, dialect, names, None if asked.tool_choice is ToolChoice.REQUIRED else asked.format),
        **_tools(asked),
    }
    if names.salt:
        request[names.salt] = job.salt or salt
    if has_priority and job.is_batch:
        request["priority"] = 1
    if asked.stop:
        request["stop"] = list(asked.stop)
    if asked.top_logprobs is not None:
        request["logprobs"] = True
        if asked.top_logprobs:
            request["top_logprobs"] = asked.top_logprobs
    return request


def tool(position: int, offered: Tool) -> JsonObject:
    """Convert a tool to the form of OpenAI's and Ollama's API."""
    parameters = decoded(f"tools[{position}].parameters", offered.parameters)
    return {"type": "function", "function": {"name": offered.name, "description": offered.description, "parameters": parameters}}


def decoded(field: str, text: str) -> JsonObject:
    """Parse a JSON object. Raises BadRequest, which names the field."""
    try:
        return msgspec.json.decode(text, type=JsonObject)
    except UNREADABLE as error:
        raise errors.BadRequest(f"{field} is not a JSON object: {str(error)[:200]}") from error


def refused(name: str, what: str, field: str) -> errors.BadRequest:
    return errors.BadRequest(f"{field} cannot be passed on: {name} {what}", hint="leave it out, or use a model of another backend")


def check(name: str, lacks: str, lacking: Iterable[str], asked: Sampling) -> None:
    """Raises BadRequest, which says what the server ``lacks``, if one of the fields ``lacking`` is asked for. They are those that ``plain``
    doesn't convert."""
    wanted = {
        "raw": asked.raw,
        "format": asked.format is not None,
        "tools": bool(asked.tools),
        "tool_choice": bool(asked.tools) and asked.tool_choice is ToolChoice.REQUIRED,
        "parallel_tool_calls": bool(asked.tools) and not asked.parallel_tool_calls,
        "top_logprobs": asked.top_logprobs is not None,
    }
    for asked_field in lacking:
        if wanted[asked_field]:
            raise refused(name, lacks, asked_field)


def plain(name: str, lacks: str, names: ServerFields, asked: Sampling) -> JsonObject:
    """Convert the fields of Sampling that need no structure. Raises BadRequest, which says what the server ``lacks``."""
    request: JsonObject = {}
    for asked_field in _PLAIN:
        value = getattr(asked, asked_field)
        if value == getattr(_UNSET, asked_field):
            continue
        if (there := names.fields.get(asked_field)) is not None:
            adapt = names.values.get(asked_field) or _ADAPT.get(asked_field)
            if (adapted := value if adapt is None else adapt(value)) is not None:
                request[there] = adapted
        elif value != _NEUTRAL.get(asked_field):
            raise refused(name, lacks, asked_field)
    return request


#: Field -> conversion of its value for every server.
_ADAPT: Mapping[str, Callable[[Any], object]] = {"chat_template_kwargs": partial(decoded, "chat_template_kwargs")}


def _format(name: str, dialect: Dialect, names: ServerFields, asked: OutputFormat | None) -> JsonObject:
    if asked is None:
        return {}
    if asked.kind is FormatKind.GBNF:
        if not names.grammar:
            raise refused(name, f"({dialect}) does not support GBNF grammars", "format")
        return {names.grammar: asked.text}
    if not asked.is_json:
        # The servers that have them name them differently from version to version, and ignore names that they don't know.
        raise refused(name, f"({dialect}) does not support guided_{asked.kind}", "format")
    schema: JsonObject = {"type": "object"} if asked.kind is FormatKind.JSON else decoded("format.text", asked.text)
    if names.schema_form is not None:
        kind, place = names.schema_form
        return {"response_format": {"type": kind, place: schema}}
    if asked.kind is FormatKind.JSON:
        return {"response_format": {"type": "json_object"}}
    # Without strict, OpenAI may ignore the schema.
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}}


def _tools(asked: Sampling) -> JsonObject:
    if not asked.tools:
        return {}
    request: JsonObject = {"tools": [tool(position, offered) for position, offered in enumerate(asked.tools)]}
    if asked.tool_choice is not ToolChoice.AUTO:
        request["tool_choice"] = asked.tool_choice
    if not asked.parallel_tool_calls:
        request["parallel_tool_calls"] = False
    return request


def _message(message: ChatMessage, reasoning: str) -> JsonObject:
    written: JsonObject = {"role": message.role, "content": _parts(message) if message.images else message.content}
    if message.reasoning and reasoning:
        written[reasoning] = message.reasoning
    if message.tool_calls:
        # The API wants null, not an empty text, from an assistant that only called tools.
        written |= {"content": message.content or None, "tool_calls": [_call(call) for call in message.tool_calls]}
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    return written


_KINDS = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


def _parts(message: ChatMessage) -> list[JsonObject]:
    parts: list[JsonObject] = []
    start = 0
    for image in message.images:
        if text := message.content[start : image.at]:
            parts.append({"type": "text", "text": text})
        kind = next((kind for begins, kind in _KINDS.items() if image.data.startswith(begins)), "jpeg")
        url = f"data:image/{kind};base64,{base64.b64encode(image.data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url, "detail": image.detail}})
        start = image.at
    if text := message.content[start:]:
        parts.append({"type": "text", "text": text})
    return parts


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
