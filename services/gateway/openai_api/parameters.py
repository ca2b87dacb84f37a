"""Decides about OpenAI's parameters that have no field here: to ignore or to refuse them. Pure.

A parameter that would change what an answer means is refused; others are accepted, because clients and frameworks send them unasked.
docs/howto/openai-api.md lists all of them and is checked against these tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from services.gateway.request_validation import BadField

ValueTest = Callable[[object], bool]


@dataclass(frozen=True, slots=True)
class ParameterRule:
    """The rule for one parameter. Null always counts as absent."""

    #: Why it is ignored, or for a refused one, what to do instead.
    description: str
    #: Returns whether a value is accepted, because it has no effect.
    accepts: ValueTest = lambda _value: False
    #: Whether every value of the right type is accepted.
    ignored: bool = False


def _ignored(kind: type, why: str) -> ParameterRule:
    return ParameterRule(why, lambda value: isinstance(value, kind), ignored=True)


def _only(description: str, *values: object) -> ParameterRule:
    # `1 == True` in Python, but not in JSON.
    return ParameterRule(description, lambda value: any(type(value) is type(good) and value == good for good in values))


_USER = _ignored(str, "the credential identifies the caller")
_CACHE_KEY = _ignored(str, "prompt prefixes are cached automatically, per account")
_CACHE_OPTIONS = _ignored(dict, "prompt prefixes are cached automatically, per account")
_SERVICE_TIER = _ignored(str, "there are no service tiers")

#: Chats and responses have these.
_COMMON: Mapping[str, ParameterRule] = {
    "user": _USER,
    "safety_identifier": _USER,
    "prompt_cache_key": _CACHE_KEY,
    "prompt_cache_retention": _CACHE_KEY,
    "prompt_cache_options": _CACHE_OPTIONS,
    "service_tier": _SERVICE_TIER,
    "moderation": ParameterRule("is not supported; policies decide what is checked, and POST /v1/moderations checks texts"),
}

CHAT: Mapping[str, ParameterRule] = {
    **_COMMON,
    "cache_control": _ignored(dict, "prompt prefixes are cached automatically, per account; also in messages, their parts and tools"),
    "store": _ignored(bool, "answers are not stored"),
    "functions": _only("is deprecated; use tools", []),
    "function_call": _only("is deprecated; use tool_choice", "none", "auto"),
    "modalities": _only('must be ["text"]; models only generate text', ["text"]),
    "verbosity": _ignored(str, "say in the prompt how long the answer should be"),
    "audio": ParameterRule("is not supported; models only generate text"),
    "prediction": _ignored(dict, "it only makes answers faster, not different"),
    "web_search_options": ParameterRule("is not supported; offer a tool that searches the web"),
}

COMPLETIONS: Mapping[str, ParameterRule] = {"user": _USER}

#: Values of `include`; encrypted reasoning is accepted, but there never is any.
INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")

RESPONSES: Mapping[str, ParameterRule] = {
    **_COMMON,
    "cache_control": _CACHE_OPTIONS,
    "store": _ignored(bool, "answers are not stored, and the response says so"),
    "max_tool_calls": _ignored(int, "it limits OpenAI's built-in tools, which are not supported"),
    "background": _only("must be false; wait for the answer, or stream it", False),
    "previous_response_id": ParameterRule("cannot be found: answers are not stored; send the whole conversation as input"),
    "conversation": ParameterRule("cannot be found: conversations are not stored; send the whole conversation as input"),
    "prompt": ParameterRule("cannot be found: prompts are not stored; send its text as instructions and input"),
    "truncation": _only("must be disabled; shorten the input yourself if it is too long", "disabled"),
    "context_management": _only("is not supported; shorten the input yourself", []),
    "image": ParameterRule("is not supported; only text is accepted"),
    "access_programs": ParameterRule("is not supported; leave it out"),
}

#: Anthropic's.
MESSAGES: Mapping[str, ParameterRule] = {
    "metadata": _ignored(dict, "requests are not stored"),
    "cache_control": _CACHE_OPTIONS,
    "service_tier": _SERVICE_TIER,
    "context_management": _only("is not supported; shorten the conversation yourself", {}),
    "mcp_servers": _only("must be empty; connect to the servers yourself and offer their tools", []),
}


def without(found: Mapping[str, object], rules: Mapping[str, ParameterRule], kind: type[msgspec.Struct]) -> dict[str, object]:
    """Return ``found`` without parameters that have no effect. Raises BadField for refused ones."""
    for name in rules.keys() & found.keys():
        value = found[name]
        if value is not None and not rules[name].accepts(value):
            raise BadField(name, rules[name].description if not rules[name].ignored else "has the wrong type; leave it out")
    fields = kind.__struct_fields__
    return {name: value for name, value in found.items() if name not in rules and not (value is None and name in fields)}
