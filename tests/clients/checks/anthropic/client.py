"""The client, and how a field is checked."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args, get_origin

import anthropic
from checklist import Checklist, error_of, script
from typing_extensions import get_type_hints, is_typeddict

checks = Checklist()
_ADDRESS = {"base_url": os.environ["OPENAI_BASE_URL"].removesuffix("/v1"), "api_key": os.environ["OPENAI_API_KEY"], "max_retries": 0}
client = anthropic.Anthropic(**_ADDRESS)
MODEL, SCRIPTED = os.environ["MODEL"], os.environ["SCRIPTED_MODEL"]

Create = Callable[..., Any]
Json = dict[str, Any]

#: A red pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
TOOL = {
    "name": "get_weather",
    "description": "Says the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ROME = ["get_weather", {"city": "Rome"}]
HELLO = {"say": "Hello you."}


def async_client() -> anthropic.AsyncAnthropic:
    """Return a client for one event loop."""
    return anthropic.AsyncAnthropic(**_ADDRESS)


def text(content: str) -> Json:
    return {"type": "text", "text": content}


def user(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def said(*messages: Any, turn: Json = HELLO, **fields: Any) -> Json:
    """Return the fields of a request to the scripted model."""
    return {"model": SCRIPTED, "max_tokens": 500, "messages": [*messages, {"role": "user", "content": script(**turn)}], **fields}


def ask(*messages: Any, turn: Json = HELLO, create: Create | None = None, ignores: tuple[str, ...] = (), **fields: Any) -> Any:
    """Return the answer to a request in which only ``ignores`` has no effect."""
    raw = (create or client.messages.with_raw_response.create)(**said(*messages, turn=turn, **fields))
    found = [name for name in raw.headers.get("x-aimesh-ignored", "").split(", ") if name]
    assert sorted(found) == sorted(ignores), found
    return raw.parse()


def report(field: str, *messages: Any, **fields: Any) -> Any:
    """Return what reached the model of a field of the chat."""
    return json.loads(ask(*messages, turn={"report": [field]}, **fields).content[-1].text)[field]


def is_refused(sentence: str, *messages: Any, **fields: Any) -> None:
    """Send a field that is refused with a sentence."""
    body = error_of(anthropic.BadRequestError, partial(ask, *messages, **fields)).body
    assert isinstance(body, dict)
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert sentence in body["error"]["message"], body


def name_fields(params: Any, whole: Callable[[str], bool], path: str = "") -> Iterator[str]:
    """Name all fields of a request: `tools.strict`, and `tools[bash]` for an alternative by its type.

    What is below a ``whole`` name has no names.
    """
    if not is_typeddict(params):
        for inner in () if get_origin(params) is None else get_args(params):
            yield from name_fields(inner, whole, path)
        return
    hints = get_type_hints(params)
    if path and (tag := _tag(hints.get("type", hints.get("role")))):
        yield f"{path}[{tag}]"
        if whole(f"{path}[{tag}]"):
            return
    for field, value in hints.items():
        if field not in {"type", "role"}:
            name = f"{path}.{field}" if path else field
            yield name
            if not whole(name):
                yield from name_fields(value, whole, name)


def _tag(value: Any) -> str | None:
    """Return the first text of a Literal."""
    if isinstance(value, str):
        return value
    return next((tag for inner in get_args(value) if (tag := _tag(inner)) is not None), None)
