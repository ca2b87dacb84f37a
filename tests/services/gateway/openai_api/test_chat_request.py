"""Bodies of chats that are decoded at once mean the same as when they are read field by field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.http_api import request_bodies, tolerant_json
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import chat_request
from services.gateway.openai_api.chat_request import ChatBody
from shared import errors

USER = {"role": "user", "content": "hi"}
#: Values that are valid for some fields, and invalid for others.
NUMBERS = (0, 1, 2, 1.0, 0.5, -1, 2**63, 10**30)
TEXTS = ("", "a", "auto", "none", "high", "function")
OBJECTS = ({}, {"a": 1}, {"type": "text"}, {"type": "json_object"}, {"1": 1.5}, {"include_usage": True}, {"conversation_id": "c"})
VALUES = st.sampled_from([None, True, False, *NUMBERS, *TEXTS, *OBJECTS, [], ["a"], [1], [{"type": "text", "text": "x"}]])
FIELDS = st.sampled_from([*chat_request.ChatBody.__struct_fields__, "user", "store", "functions", "function_call", "audio", "unknown"])
MESSAGE_FIELDS = st.sampled_from(
    ["role", "content", "tool_calls", "tool_call_id", "refusal", "reasoning_content", "name", "annotations", "parsed", "cache_control", "x"]
)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = st.dictionaries(MESSAGE_FIELDS, VALUES | st.just([CALL]), max_size=3).map(lambda more: {**USER, **more})


def read_fast(body: bytes) -> ChatBody:
    return tolerant_json.read(body, chat_request.DIALECT, Ignored())


def read_slowly(body: bytes) -> ChatBody:
    return tolerant_json.convert(request_bodies.read_object(body), chat_request.DIALECT, Ignored())


def outcome(read: Any, body: bytes) -> object:
    try:
        chat = read(body)
        return chat_request.to_request(chat)
    except errors.AimeshError as error:
        return type(error), error.message


@given(st.dictionaries(FIELDS, VALUES, max_size=3), st.lists(MESSAGES, max_size=2))
def test_both_ways_to_read_a_body_agree(more: dict[str, object], messages: list[dict[str, object]]) -> None:
    body = json.dumps({"messages": messages or [USER], **more}).encode()
    assert outcome(read_fast, body) == outcome(read_slowly, body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"messages":[{"role":"user","content":"\xff"}]}', id="not UTF-8"),
        pytest.param(b'{"messages":' + b"[" * 100_000, id="nested too deeply"),
        pytest.param(b'{"messages":[{"role":"user","content":"a"}],"temperature":1e400}', id="a number too large"),
        pytest.param(b'{"messages":[{"role":"user","content":"a"}],"seed":12345678901234567890123}', id="an integer above 64 bits"),
        pytest.param(b'{"messages":[{"role":"user","content":"a","content":"b"}],"n":1,"n":2}', id="fields twice"),
        pytest.param(b'{"messages":[{"role":"user","content":"a"}]} x', id="something behind it"),
        pytest.param(b'{"messages":[{"role":"function","content":"a","name":"f"}]}', id="a deprecated role"),
        pytest.param(b'{"messages":[{"role":"assistant","content":null,"refusal":""}]}', id="an empty refusal"),
        pytest.param(b'{"messages":[{"role":"user","content":"a","tool_call_id":""}]}', id="an empty call id"),
    ],
)
def test_both_ways_agree_about_mistakes(body: bytes) -> None:
    assert outcome(read_fast, body) == outcome(read_slowly, body)
