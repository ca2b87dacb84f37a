"""What all checks of Ollama's client use."""

import json
import os
from base64 import b64decode
from typing import Any

import ollama
from checklist import Checklist, script

checks = Checklist()
SCRIPTED, MODEL = os.environ["SCRIPTED_MODEL"], os.environ["MODEL"]
# Its host is OLLAMA_HOST, and it sends no key.
client = ollama.Client()
PNG = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Says the weather.", "parameters": SCHEMA}}
ROME = ["get_weather", {"city": "Rome"}]


def messages(**turn: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": script(**turn)}]


def chat(*before: Any, turn: dict[str, Any] | None = None, **fields: Any) -> ollama.ChatResponse:
    return client.chat(SCRIPTED, [*before, *messages(**(turn or {"say": "Hello."}))], **fields)


def report(field: str, *before: Any, **fields: Any) -> Any:
    """Return what reached the model of a field."""
    return json.loads(chat(*before, turn={"report": [field]}, **fields).message.content or "")[field]


def refusal(run: Any) -> ollama.ResponseError:
    try:
        run()
    except ollama.ResponseError as error:
        return error
    raise AssertionError("it was not refused")
