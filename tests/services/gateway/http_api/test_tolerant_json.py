"""What vendors' clients send is read whatever else they add; /api and strict callers learn of each unknown name."""

import json
import random
from typing import Any

import httpx
import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import tolerant_json
from services.gateway.http_api.tolerant_json import BodyDialect, Ignored
from services.gateway.openai_api import anthropic_request, chat_request, completion_request, response_request
from shared.api.gateway import MAX_IGNORED_CHARACTERS
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEXT = [{"type": "text", "text": "a"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "default": None}}}
#: A whole request of each API.
BODIES: dict[str, tuple[BodyDialect[Any], dict[str, Any]]] = {
    "chat": (chat_request.DIALECT, {
        "messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "b", "tool_calls": [CALL]},
                     {"role": "tool", "tool_call_id": "c", "content": "d"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "stream": True, "stream_options": {"include_usage": True},
    }),
    "completions": (completion_request.DIALECT, {"prompt": ["a"], "stream": True, "stream_options": {"include_usage": True}}),
    "responses": (response_request.DIALECT, {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                  {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "b"}]},
                  {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": "d"}],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}], "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}}, "tool_choice": {"type": "function", "name": "f"},
    }),
    "messages": (anthropic_request.DIALECT, {
        "max_tokens": 5, "system": TEXT, "tools": [{"name": "f", "input_schema": SCHEMA}], "thinking": {"type": "adaptive"},
        "messages": [{"role": "user", "content": TEXT},
                     {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": None}}]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": TEXT}]}],
    }),
}  # fmt: skip
#: Objects that belong to the caller, and reach the model as they are.
FREE = {"parameters", "input_schema", "input", "metadata"}


def with_unknown(value: Any, rng: random.Random) -> Any:
    """Return the value with unknown fields and nulls in each object."""
    if isinstance(value, list):
        return [with_unknown(each, rng) for each in value]
    if not isinstance(value, dict):
        return value
    news = [1, "x", {"a": [1]}, [{"type": "new"}], True]
    more = {f"new_{rng.randrange(10**9)}": rng.choice(news) for _ in range(20)} | {f"null_{rng.randrange(10**9)}": None}
    kept = {name: inner if name in FREE and isinstance(inner, dict) else with_unknown(inner, rng) for name, inner in value.items()}
    return kept | more


def read(name: str, body: dict[str, Any], ignored: Ignored | None = None, *, strict: bool = False) -> Any:
    return tolerant_json.read(json.dumps(body).encode(), BODIES[name][0], Ignored() if ignored is None else ignored, strict=strict)


@pytest.mark.parametrize("name", BODIES)
def test_unknown_fields_at_every_level_change_nothing(name: str) -> None:
    body, ignored = BODIES[name][1], Ignored()
    assert read(name, with_unknown(body, random.Random(7)), ignored) == read(name, body, strict=True)
    assert set(ignored.labels.values()) == {tolerant_json.OTHER}
    assert len(ignored.labels) >= 40
    assert len(str(ignored)) < MAX_IGNORED_CHARACTERS


@pytest.mark.parametrize("name", BODIES)
def test_a_strict_caller_learns_of_it(name: str) -> None:
    with pytest.raises(BadField, match="is not a supported field"):
        read(name, BODIES[name][1] | {"new": 1}, strict=True)


def test_a_null_is_absent_but_not_in_the_callers_own_objects() -> None:
    message = {"role": "user", "content": TEXT, "tool_calls": None, "reasoning": None}
    chat = read("chat", {"messages": [message], "tools": [{"function": {"name": "f", "parameters": {"default": None}}}], "n": None})
    assert chat.tools[0].function.parameters == {"default": None}
    with pytest.raises(BadField, match=r"messages\[0\]\.role is missing"):
        read("chat", {"messages": [{"role": None, "content": "a"}]})


def test_the_position_of_a_refused_part_is_named() -> None:
    audio = {"type": "input_audio", "input_audio": {}, "new": 1}
    with pytest.raises(BadField, match=r"^messages\[1\]\.content\[1\] must be a text or image_url part; audio and files are not"):
        read("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [*TEXT, audio]}]})


def test_other_tools_are_left_out_and_named() -> None:
    ignored = Ignored()
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {"name": "f", "input_schema": {}}, {"type": "x y", "name": "z"}]
    body = read("messages", {**BODIES["messages"][1], "tools": tools}, ignored)
    assert [tool.name for tool in body.tools] == ["f"]
    assert ignored.labels == {"tools[web_search_20250305]": "tools[*]", "tools[x y]": "tools[*]"}
    # A type that is no name may be text.
    assert str(ignored) == "tools[web_search_20250305], 1 more"


@pytest.mark.parametrize("part", [{"text": "a"}, {"type": None, "text": "a"}])
def test_the_missing_type_of_an_entry_is_named(part: dict[str, Any]) -> None:
    with pytest.raises(BadField, match=r"^messages\[0\]\.content\[0\]\.type is missing"):
        read("chat", {"messages": [{"role": "user", "content": [part]}]})


@pytest.mark.parametrize("value", [5, "x", [5], {"type": 5}, {"type": ["a"]}, {"type": {}}])
def test_a_wrong_entry_is_refused_by_its_type(value: object) -> None:
    with pytest.raises(BadField, match=r"^messages\[0\]\.content"):
        read("messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [value]}]})


async def test_the_answer_and_the_metric_name_what_was_ignored() -> None:
    body = {"messages": [{"role": "user", "content": "hi", "name": "ann"}], "store": True, "my secret text": 1, "newer": {"a": 1}}
    async with fakes.running_service() as service:
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"authorization": f"Bearer {KEY}"}) as http:
            answer = await http.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-aimesh-ignored"] == "store, newer, messages.name, 1 more"
            refused = await http.post("/v1/chat/completions", json=body | {"n": 99})
            assert (refused.status_code, refused.headers["x-aimesh-ignored"]) == (400, "store, newer, messages.name, 1 more")
            plain = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
            assert "x-aimesh-ignored" not in plain.headers
            legacy = await http.post("/v1/completions", json={"prompt": ["a", "b"], "suffixes": []})
            assert legacy.status_code == 200
            strict = await http.post("/v1/chat/completions", json=body, headers={"x-aimesh-strict": "1"})
            assert strict.json()["error"]["param"] == "my secret text"
        (family,) = service.metrics.ignored_fields.collect()
        counted = {(one.labels["dialect"], one.labels["field"]): one.value for one in family.samples if one.name.endswith("_total")}
        logged = [row.ignored_fields for row in service.store.rows.values() if row.status == "success"]
    assert counted == {("chat", "messages.name"): 2, ("chat", "store"): 3, ("chat", "other"): 2, ("completions", "other"): 1}
    assert logged == ["store, newer, messages.name, 1 more", None, "suffixes", "suffixes"]
