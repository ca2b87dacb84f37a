"""The client, and how a field is checked."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
from checklist import Checklist, error_of

checks = Checklist()
client = openai.OpenAI(max_retries=0)
async_client = openai.AsyncOpenAI(max_retries=0)
MODEL, SCRIPTED = os.environ["MODEL"], os.environ["SCRIPTED_MODEL"]

#: A red pixel.
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}

Raw = Callable[..., Any]


def ignored(raw: Any) -> str:
    """Return what the answer says had no effect."""
    return str(raw.headers.get("x-aimesh-ignored", ""))


def works(create: Raw, **fields: Any) -> Any:
    """Send fields that have an effect, and return the answer."""
    raw = create(**fields)
    assert ignored(raw) == "", ignored(raw)
    return raw.parse()


def has_no_effect(create: Raw, name: str, **fields: Any) -> Any:
    """Send a field that is ignored, and return the answer."""
    raw = create(**fields)
    assert name in ignored(raw).split(", "), ignored(raw)
    return raw.parse()


def is_refused(create: Raw, sentence: str, *, param: str | None = None, **fields: Any) -> None:
    """Send a field that is refused with a sentence."""
    error = error_of(openai.BadRequestError, partial(create, **fields))
    assert sentence in error.message, error.message
    assert param in {None, error.param}, error.param
