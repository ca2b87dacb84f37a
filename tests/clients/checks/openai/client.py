"""The client, and how a field is checked."""

import os
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import openai
from checklist import Checklist, error_of

checks = Checklist()
client = openai.OpenAI(max_retries=0)
MODEL, SCRIPTED = os.environ["MODEL"], os.environ["SCRIPTED_MODEL"]

#: A red pixel.
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}

#: Fields without effect, in chats and responses.
NO_EFFECT: dict[str, Any] = {
    "user": "ada",
    "safety_identifier": "ada",
    "prompt_cache_key": "agent",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
}

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


def tags_of(union: Any) -> set[str]:
    """Return the values of ``type`` in a union of the client's types."""
    members = get_args(get_args(union)[0]) if get_origin(union) is Annotated else get_args(union)
    kinds = [get_args(each)[0] if get_origin(each) else each for each in members]
    hints = [kind.model_fields["type"].annotation if hasattr(kind, "model_fields") else get_type_hints(kind)["type"] for kind in kinds]
    return {tag for hint in hints for tag in _literals(hint)}


def _literals(hint: Any) -> set[str]:
    return {tag for each in get_args(hint) for tag in ({each} if isinstance(each, str) else _literals(each))}
