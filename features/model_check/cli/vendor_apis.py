"""Writes a script as a request of three APIs, and reads their answers, whole and streamed. Pure."""

from enum import StrEnum
from typing import Any

import msgspec

from features.model_check.cli.judge import Answer
from features.model_check.cli.scripts import SYSTEM, Script

#: Of one answer, with thoughts.
_MAX_TOKENS = 2048

Json = dict[str, Any]


class Api(StrEnum):
    CHAT = "chat"
    RESPONSES = "responses"
    MESSAGES = "messages"


PATHS = {Api.CHAT: "/v1/chat/completions", Api.RESPONSES: "/v1/responses", Api.MESSAGES: "/v1/messages"}


def write(api: Api, model: str, script: Script, *, is_streamed: bool) -> bytes:
    return msgspec.json.encode({"model": model, "temperature": 0, "stream": is_streamed, **_WRITERS[api](script)})


def read(api: Api, body: bytes, *, is_streamed: bool) -> Answer:
    """Raises ValueError for what isn't an answer, such as an error in a stream."""
    lines = [line.removeprefix(b"data:").strip() for line in body.splitlines() if line.startswith(b"data:")] if is_streamed else [body]
    found = [msgspec.json.decode(line, type=Json) for line in lines if line != b"[DONE]"]
    if problem := next(filter(None, map(_find_error, found)), ""):
        raise ValueError(problem)
    try:
        return _READERS[api](found)
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"it has another form ({error!r})") from error


def read_refusal(body: bytes) -> str:
    """Return the message of an error; empty if it has none."""
    try:
        return _find_error(msgspec.json.decode(body, type=Json))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _find_error(body: Json) -> str:
    match body:
        case {"error": {"message": message}} | {"response": {"error": {"message": message}}}:
            return str(message)
    return ""


def _write_chat(script: Script) -> Json:
    messages: list[Json] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": script.ask}]
    for number, (call, result) in enumerate(script.done):
        function = {"name": call.name, "arguments": _json(call.arguments)}
        messages.append({"role": "assistant", "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}]})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": result})
    tools = [{"type": "function", "function": msgspec.to_builtins(tool)} for tool in script.tools]
    return {"messages": messages, "tools": tools, "seed": 1, "max_tokens": _MAX_TOKENS}


def _write_responses(script: Script) -> Json:
    items: list[Json] = [{"role": "user", "content": script.ask}]
    for number, (call, result) in enumerate(script.done):
        items.append({"type": "function_call", "call_id": f"call_{number}", "name": call.name, "arguments": _json(call.arguments)})
        items.append({"type": "function_call_output", "call_id": f"call_{number}", "output": result})
    tools = [{"type": "function", "strict": False, **msgspec.to_builtins(tool)} for tool in script.tools]
    return {"instructions": SYSTEM, "input": items, "tools": tools, "max_output_tokens": _MAX_TOKENS, "store": False}


def _write_messages(script: Script) -> Json:
    messages: list[Json] = [{"role": "user", "content": script.ask}]
    for number, (call, result) in enumerate(script.done):
        use = {"type": "tool_use", "id": f"toolu_{number}", "name": call.name, "input": call.arguments}
        messages.append({"role": "assistant", "content": [use]})
        messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": result}]})
    tools = [{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in script.tools]
    return {"system": SYSTEM, "messages": messages, "tools": tools, "max_tokens": _MAX_TOKENS}


def _read_chat(bodies: list[Json]) -> Answer:
    text, calls = "", dict[int, tuple[str, str]]()
    for choice in (choice for body in bodies for choice in body["choices"]):
        message = choice.get("message") or choice["delta"]
        text += message.get("content") or ""
        for place, call in enumerate(message.get("tool_calls") or ()):
            # Only parts of a stream have an index.
            index = call.get("index", place)
            name, arguments = calls.get(index, ("", ""))
            calls[index] = name + (call["function"].get("name") or ""), arguments + (call["function"].get("arguments") or "")
    return Answer(text, tuple(calls.values()))


def _read_responses(bodies: list[Json]) -> Answer:
    # The last event of a stream has the whole answer.
    items = bodies[-1].get("response", bodies[-1])["output"]
    text = "".join(part.get("text", "") for item in items if item["type"] == "message" for part in item["content"])
    return Answer(text, tuple((str(item["name"]), str(item["arguments"])) for item in items if item["type"] == "function_call"))


def _read_messages(bodies: list[Json]) -> Answer:
    blocks = dict(enumerate(bodies[0].get("content", ())))
    for body in bodies:
        if body["type"] == "content_block_start":
            blocks[body["index"]] = body["content_block"]
        elif body["type"] == "content_block_delta":
            block = blocks[body["index"]]
            for part in ("text", "partial_json"):
                block[part] = block.get(part, "") + body["delta"].get(part, "")
    text = "".join(block["text"] for block in blocks.values() if block["type"] == "text")
    calls = (
        (str(each["name"]), each.get("partial_json") or _json(each["input"])) for each in blocks.values() if each["type"] == "tool_use"
    )
    return Answer(text, tuple(calls))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


_WRITERS = {Api.CHAT: _write_chat, Api.RESPONSES: _write_responses, Api.MESSAGES: _write_messages}
_READERS = {Api.CHAT: _read_chat, Api.RESPONSES: _read_responses, Api.MESSAGES: _read_messages}
