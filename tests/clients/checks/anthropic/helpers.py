"""The client's methods beside `create`, its errors and its options."""

import json
from functools import partial
from typing import Any, get_args

import anthropic
import pydantic
from anthropic.lib.streaming import MessageStreamEvent
from checklist import error_of

from checks.anthropic.client import HELLO, IMAGE, MODEL, ROME, SCRIPTED, TOOL, ask, async_client, checks, client, said, text, user

EVERYTHING = said(turn={"think": "Let me see.", "say": "One moment.", "calls": [ROME]}, tools=[TOOL], thinking={"type": "adaptive"})


class Person(pydantic.BaseModel):
    name: str
    age: int


ANN = Person(name="Ann", age=5)
PERSON = said(turn={"say": ANN.model_dump_json()})


def parsed(answer: Any) -> Any:
    """Return the report of an answer."""
    return json.loads(answer.content[-1].text)


# --- messages.stream --------------------------------------------------------------------------------------------------------------


@checks("messages.stream()", "messages.stream().text_stream", "messages.stream().get_final_text()")
def _() -> None:
    with client.messages.stream(**said()) as stream:
        assert list(stream.text_stream) == ["Hello ", "you."]
        assert stream.get_final_text() == "Hello you."


@checks("messages.stream().get_final_message()", "messages.stream().current_message_snapshot", "messages.stream().until_done()")
def _() -> None:
    with client.messages.stream(**EVERYTHING) as stream:
        stream.until_done()
        final = stream.get_final_message()
        assert stream.current_message_snapshot.content == final.content
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].input == ROME[1]
    assert (final.stop_reason, final.usage.output_tokens > 0) == ("tool_use", True)


@checks("messages.stream().close()", "messages.stream().response", "messages.stream().request_id")
def _() -> None:
    with client.messages.stream(**said()) as stream:
        assert stream.response.status_code == 200
        assert stream.request_id
        stream.close()


@checks("messages.stream(output_format=)")
def _() -> None:
    with client.messages.stream(**PERSON, output_format=Person) as stream:
        assert stream.get_final_message().parsed_output == ANN


def _stream_event(kind: str, attribute: str, expected: Any) -> None:
    with client.messages.stream(**EVERYTHING) as stream:
        found = [event for event in stream if event.type == kind]
    value = getattr(found[-1], attribute)
    assert expected(value) if callable(expected) else value == expected, value


STREAM_EVENTS: dict[str, tuple[str, Any]] = {
    "text": ("snapshot", "One moment."),
    "thinking": ("snapshot", "Let me see."),
    "signature": ("signature", bool),
    "input_json": ("snapshot", ROME[1]),
    "message_start": ("message", lambda message: message.role == "assistant"),
    "message_delta": ("delta", lambda delta: delta.stop_reason == "tool_use"),
    "message_stop": ("message", lambda message: len(message.content) == 3),
    "content_block_start": ("content_block", lambda block: block.type == "tool_use"),
    "content_block_delta": ("index", 2),
    "content_block_stop": ("content_block", lambda block: block.input == ROME[1]),
}
for name, (attribute, expected) in STREAM_EVENTS.items():
    checks.add(f"messages.stream() event.{name}", partial(_stream_event, name, attribute, expected))


@checks("messages.stream() event.citation")
def _() -> None:
    # Only Anthropic's models cite.
    with client.messages.stream(**EVERYTHING) as stream:
        assert "citation" not in {event.type for event in stream}


_STREAM_EVENTS = [get_args(struct.model_fields["type"].annotation)[0] for struct in get_args(get_args(MessageStreamEvent)[0])]
checks.ensure_named("messages.stream() event", _STREAM_EVENTS)

# --- the other methods of messages -------------------------------------------------------------------------------------------------


@checks("messages.parse()", "messages.parse().parsed_output")
def _() -> None:
    assert client.messages.parse(**PERSON, output_format=Person).parsed_output == ANN


@checks("messages.count_tokens()")
def _() -> None:
    # The tokenizer of our own engine counts exactly; for another server's model it is an estimate.
    for model in (MODEL, SCRIPTED):
        short = client.messages.count_tokens(model=model, messages=[user(text("Hello"))]).input_tokens
        long = client.messages.count_tokens(model=model, system="Be brief. " * 50, messages=[user(text("Hello"))]).input_tokens
        assert 0 < short < long - 50


COUNTED: dict[str, Any] = {
    "messages": [user(text("Hello " * 100))],
    "system": "Be brief. " * 50,
    "tools": [TOOL],
    "output_config": {"format": {"type": "json_schema", "schema": TOOL["input_schema"]}},
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "cache_control": {"type": "ephemeral"},
    "speed": "fast",
    "model": SCRIPTED,
    "user_profile_id": "profile_1",
    "workspace_id": "wrkspc_1",
}


def _is_counted(name: str) -> None:
    fields: dict[str, Any] = {"model": SCRIPTED, "messages": [user(text("Hello"))]}
    counted = client.messages.count_tokens(**{**fields, name: COUNTED[name]}).input_tokens
    assert counted >= client.messages.count_tokens(**fields).input_tokens


for name in COUNTED:
    checks.add(f"count_tokens.{name}", partial(_is_counted, name))
checks.ensure_named("count_tokens", anthropic.types.MessageCountTokensParams.__annotations__)


@checks("messages.count_tokens(): images")
def _() -> None:
    assert client.messages.count_tokens(model=SCRIPTED, messages=[user(text("Look"), IMAGE)]).input_tokens > 0


@checks("messages.with_raw_response")
def _() -> None:
    raw = client.messages.with_raw_response.create(**said())
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.parse().content[0].text == HELLO["say"]


@checks("messages.with_streaming_response")
def _() -> None:
    with client.messages.with_streaming_response.create(**said(), stream=True) as response:
        assert any(line == "event: message_stop" for line in response.iter_lines())


@checks("Message.to_param()")
def _() -> None:
    answer = ask()
    assert ask({"role": "user", "content": "Hello"}, answer.to_param()).content[0].text == HELLO["say"]


@checks("Message._request_id")
def _() -> None:
    raw = client.messages.with_raw_response.create(**said())
    assert raw.parse()._request_id == raw.headers["x-request-id"]


# --- async --------------------------------------------------------------------------------------------------------------------------


@checks("AsyncAnthropic.messages.create()", "AsyncAnthropic.messages.create(stream=)")
async def _() -> None:
    async with async_client() as client:
        assert (await client.messages.create(**said())).content[0].text == HELLO["say"]
        assert [event async for event in await client.messages.create(**said(), stream=True)][-1].type == "message_stop"


@checks("AsyncAnthropic.messages.stream()")
async def _() -> None:
    async with async_client() as client, client.messages.stream(**EVERYTHING) as stream:
        assert "".join([piece async for piece in stream.text_stream]) == "One moment."
        assert (await stream.get_final_message()).content[2].input == ROME[1]


@checks("AsyncAnthropic.messages.parse()", "AsyncAnthropic.messages.count_tokens()")
async def _() -> None:
    async with async_client() as client:
        assert (await client.messages.parse(**PERSON, output_format=Person)).parsed_output == ANN
        assert (await client.messages.count_tokens(model=SCRIPTED, messages=[user(text("Hello"))])).input_tokens > 0


@checks("AsyncAnthropic.models.list()")
async def _() -> None:
    async with async_client() as client:
        assert SCRIPTED in [model.id async for model in client.models.list()]


# --- models -------------------------------------------------------------------------------------------------------------------------


@checks("models.list()", "models.list(limit=)")
def _() -> None:
    assert SCRIPTED in [model.id for model in client.models.list()]
    assert SCRIPTED in [model.id for model in client.models.list(limit=1)]


@checks("models.retrieve()", "ModelInfo.id", "ModelInfo.type", "ModelInfo.display_name", "ModelInfo.created_at")
def _() -> None:
    model = client.models.retrieve(SCRIPTED)
    assert (model.id, model.type, model.display_name) == (SCRIPTED, "model", SCRIPTED)
    assert model.created_at.year >= 1970


@checks("ModelInfo.max_input_tokens")
def _() -> None:
    assert client.models.retrieve(SCRIPTED).max_input_tokens == 200_000


# --- errors and options --------------------------------------------------------------------------------------------------------------


def _fails(kind: type[anthropic.APIStatusError], error_type: str, call: Any) -> None:
    error = error_of(kind, call)
    assert isinstance(error.body, dict)
    assert (error.body["type"], error.body["error"]["type"], error.type) == ("error", error_type, error_type)
    assert error.body["error"]["message"]
    assert error.request_id


def _bad() -> Any:
    return client.messages.create(**said(max_tokens=-1))


def _unknown() -> Any:
    return client.messages.create(**{**said(), "model": "claude-9"})


def _no_credential() -> Any:
    return client.with_options(api_key="aip_live_wrong").messages.create(**said())


def _no_path() -> Any:
    return client.post("/v1/messages/none", cast_to=object)


ERRORS: dict[str, tuple[Any, str, Any]] = {
    "BadRequestError": (anthropic.BadRequestError, "invalid_request_error", _bad),
    "NotFoundError": (anthropic.NotFoundError, "not_found_error", _unknown),
    "NotFoundError: a path": (anthropic.NotFoundError, "not_found_error", _no_path),
    "AuthenticationError": (anthropic.AuthenticationError, "authentication_error", _no_credential),
}
for name, case in ERRORS.items():
    checks.add(name, partial(_fails, *case))


@checks("APITimeoutError", "client.with_options(timeout=)")
def _() -> None:
    assert error_of(anthropic.APITimeoutError, partial(client.with_options(timeout=0.0001).messages.create, **said()))


@checks("auth_token=")
def _() -> None:
    bearer = anthropic.Anthropic(base_url=client.base_url, api_key=None, auth_token=client.api_key, max_retries=0)
    assert bearer.messages.create(**said()).content[0].text == HELLO["say"]


@checks("default_headers=", "extra_headers=", "extra_query=")
def _() -> None:
    with_headers = client.with_options(default_headers={"anthropic-beta": "one-2026-01-01", "anthropic-version": "2099-01-01"})
    answer = with_headers.messages.create(**said(), extra_headers={"x-a": "b"}, extra_query={"beta": "true"})
    assert answer.content[0].text == HELLO["say"]


@checks("extra_body=")
def _() -> None:
    raw = client.messages.with_raw_response.create(**said(), extra_body={"from_the_future": {"a": 1}})
    assert raw.headers["x-aimesh-ignored"] == "from_the_future"


@checks("http HEAD /")
def _() -> None:
    assert client._client.head(str(client.base_url)).status_code == 200
