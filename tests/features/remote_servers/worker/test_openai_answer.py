import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.remote_servers.worker.rules import openai_answer
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from features.remote_servers.worker.rules.openai_answer import AnswerAssembly, AnswerStep
from shared.api.generation import ToolCall, ToolCallPart
from shared.api.inference import Chunk, TokenChance, TokenLogprob
from shared.types import FinishReason
from tests.services.inference.standins import calls_of

STOP = {"delta": {}, "finish_reason": "stop"}


def answers(number: int = 1) -> AnswerAssembly:
    drawn = count(1)
    return AnswerAssembly(number, lambda: f"drawn{next(drawn)}")


def event(*choices: Any, **more: Any) -> bytes:
    return json.dumps({"choices": choices, **more}).encode()


def says(text: str, index: int = 0) -> Any:
    return {"index": index, "delta": {"content": text}}


def calls(*parts: Any) -> Any:
    return {"delta": {"tool_calls": parts}}


def part(index: int | None, arguments: object = None, name: str | None = None, id: str | None = None) -> Any:  # noqa: A002  # the API's word
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def run(into: AnswerAssembly, *events: bytes) -> list[Chunk]:
    return [chunk for one in events for chunk in into.push(one).chunks]


def test_text_comes_as_it_is_said() -> None:
    one = answers()
    chunks = run(one, event({"delta": {"role": "assistant", "content": ""}}), event(says("Hel")), event(says("lo")), event(STOP))
    assert chunks == [Chunk("Hel", ()), Chunk("lo", ())]
    assert one.reasons() == (FinishReason.STOP,)
    assert one.pieces == 2


@pytest.mark.parametrize(
    ("said", "reason"),
    [("stop", FinishReason.STOP), ("length", FinishReason.LENGTH), ("tool_calls", FinishReason.STOP), ("eos_token", FinishReason.STOP)],
)
def test_reasons(said: str, reason: FinishReason) -> None:
    one = answers()
    one.push(event({"delta": {"content": "a"}, "finish_reason": said}))
    assert one.reasons() == (reason,)


def test_several_answers_are_told_apart() -> None:
    two = answers(2)
    chunks = run(two, event(says("a", 1), says("b", 0)), event({"index": 1, "finish_reason": "length"}))
    assert chunks == [Chunk("a", (), 1), Chunk("b", (), 0)]
    assert not two.finished
    with pytest.raises(BadStream, match="1 of 2 answers"):
        two.reasons()
    two.push(event({"index": 0, "delta": {}, "finish_reason": "stop"}))
    assert two.reasons() == (FinishReason.STOP, FinishReason.LENGTH)


def test_it_is_complete_with_its_end_and_usage_or_with_the_mark() -> None:
    one = answers()
    one.push(event(STOP))
    assert (one.finished, one.complete) == (True, False)
    one.push(event(usage={"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}))
    assert one.complete
    assert one.usage is not None
    assert (one.usage.prompt_tokens, one.usage.completion_tokens, one.usage.cached_tokens) == (1, 2, 1)
    marked = answers()
    marked.push(b"[DONE]")
    assert (marked.finished, marked.complete) == (False, True)


@pytest.mark.parametrize("usage", ["many", [], {"prompt_tokens_details": 5}, {"prompt_tokens": "x"}, 3, {"prompt_tokens_details": []}])
def test_no_usage_breaks_an_answer(usage: object) -> None:
    one = answers()
    one.push(event(STOP, usage=usage))
    assert one.usage is not None
    assert one.usage.cached_tokens is None


@pytest.mark.parametrize("delta", [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"reasoning": "hm", "reasoning_content": "hm"}])
def test_thoughts_are_apart_from_the_text(delta: dict[str, str]) -> None:
    one = answers()
    assert one.push(event({"delta": delta})) == AnswerStep((Chunk("", (), reasoning="hm"),), is_progress=True)
    one.push(event(says("a")))
    one.push(event(STOP, usage={"completion_tokens_details": {"reasoning_tokens": 1}}))
    assert one.usage is not None
    assert (one.pieces, one.thoughts, one.usage.reasoning_tokens) == (2, 1, 1)


@pytest.mark.parametrize("data", [event({"delta": {"role": "assistant", "content": ""}}), event(), b"{}", event({"delta": None})])
def test_what_brings_nothing_is_no_progress(data: bytes) -> None:
    assert answers().push(data) == AnswerStep()


def test_a_refusal_is_what_the_model_says() -> None:
    assert run(answers(), event({"delta": {"refusal": "I will not"}})) == [Chunk("I will not", ())]


# --- tool calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [calls(part(0, "", "f", "c1")), calls(part(0, '{"a"')), calls(part(0, ":1}"), part(1, None, "g", "c2"))],
            [
                ToolCallPart(0, "", "c1", "f"),
                ToolCallPart(0, '{"a"'),
                ToolCallPart(0, ":1}"),
                ToolCallPart(1, "", "c2", "g"),
                ToolCallPart(1, "{}"),
            ],
            id="OpenAI's, one without arguments",
        ),
        pytest.param([calls(part(0, '{"a"', "f", "c1")), calls(part(0, ":1}", "f", "c1"))],
                     [ToolCallPart(0, '{"a"', "c1", "f"), ToolCallPart(0, ":1}")], id="the name in each part"),
        pytest.param([calls(part(0, "{", None, "c1")), calls(part(0, "}", "f"))],
                     [ToolCallPart(0, "{}", "c1", "f")], id="a call waits for its name"),
        pytest.param([calls(part(5, "{}", "f"))], [ToolCallPart(0, "{}", "drawn1", "f")], id="no id, and a number of its own"),
    ],
)  # fmt: skip
def test_calls_in_parts(events: list[Any], expected: list[ToolCallPart]) -> None:
    chunks = run(answers(), *map(event, events), event(STOP))
    assert [part for chunk in chunks for part in chunk.call_parts] == expected
    with pytest.raises(BadStream, match="without a name"):
        run(answers(), event(calls(part(0, "{}"))), event(STOP))


@given(st.text(max_size=30), st.text(max_size=30), st.data())
def test_calls_are_assembled_from_any_pieces(first: str, second: str, data: st.DataObject) -> None:
    def split(index: int, text: str, name: str) -> list[Any]:
        cut = data.draw(st.integers(0, len(text)))
        return [part(index, None, name, f"id-{name}"), part(index, text[:cut]), part(index, text[cut:])]

    parts = [one for pair in zip(split(0, first, "f"), split(1, second, "g"), strict=True) for one in pair]
    size = data.draw(st.integers(1, len(parts)))
    one = answers()
    chunks = run(one, *(event(calls(*parts[at : at + size])) for at in range(0, len(parts), size)), event(STOP))
    assert calls_of(chunks) == (ToolCall("id-f", "f", first or "{}"), ToolCall("id-g", "g", second or "{}"))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([calls(part(0, "{}", "f"))], [ToolCall("drawn1", "f", "{}")], id="a call without an id is given one"),
        pytest.param([calls(part(0, {"a": 1}, "f", "x"))], [ToolCall("x", "f", '{"a":1}')], id="arguments as an object"),
        pytest.param([{"delta": {"tool_calls": part(0, "{}", "f", "x")}}], [ToolCall("x", "f", "{}")], id="older TGI: not a list"),
        pytest.param(
            [calls(part(0, "{", "f", "x")), calls(part(0, "}", "f", "x"))], [ToolCall("x", "f", "{}")], id="a name that is repeated"
        ),
        pytest.param(
            [calls(part(None, "{", "f", "x")), calls(part(None, "}")), calls(part(None, "{}", "g", "y"))],
            [ToolCall("x", "f", "{}"), ToolCall("y", "g", "{}")],
            id="no index: a new id is a new call",
        ),
        pytest.param(
            [calls(part(1, "{}", "g", "y"), part(0, "{}", "f", "x"))], [ToolCall("y", "g", "{}"), ToolCall("x", "f", "{}")], id="order"
        ),
    ],
)
def test_the_ways_in_which_servers_send_calls(events: list[Any], expected: list[ToolCall]) -> None:
    chunks = run(answers(), *(event(one) for one in events), event({"delta": {}, "finish_reason": "tool_calls"}))
    assert list(calls_of(chunks)) == expected


# --- log probabilities ----------------------------------------------------------------------------------------------


def test_log_probabilities_have_numbers_that_are_no_token_ids() -> None:
    token = {"token": "é", "logprob": -0.5, "bytes": [195], "top_logprobs": [{"token": "b", "logprob": -1.0}]}
    (chunk,) = run(answers(), event({"delta": {"content": ""}, "logprobs": {"content": [token, {"token": "b", "logprob": -2.0}]}}))
    b = TokenChance(-2, b"b", -1.0)
    assert chunk == Chunk("", (), logprobs=(TokenLogprob(TokenChance(-1, b"\xc3", -0.5), (b,)), TokenLogprob(TokenChance(-2, b"b", -2.0))))


# --- protocol violations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(event(says("a", 1)), id="an answer that was not asked for"),
        pytest.param(event(says("a", -1)), id="a negative index"),
        pytest.param(event(calls(part(128, "", "f"))), id="too many calls"),
        pytest.param(event(calls(part(-1, "", "f"))), id="a call with a negative index"),
        pytest.param(event(calls(part(0, "x" * (openai_answer.MAX_ARGUMENT_CHARACTERS + 1), "f"))), id="endless arguments"),
        pytest.param(event(calls(part(0, "", "f" * 300))), id="an endless name"),
        pytest.param(event({"delta": {"tool_calls": [part(0, "{}")]}, "finish_reason": "stop"}), id="a call without a name"),
        pytest.param(event({"finish_reason": "abort"}), id="given up"),
        pytest.param(event({"logprobs": {"content": [{"token": "a", "logprob": 0, "bytes": [256]}]}}), id="bytes that are none"),
        pytest.param(b"garbage", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"choices": 5}', id="no choices"),
        pytest.param(b'{"choices": [{"delta": {"content": "\xff"}}]}', id="no UTF-8"),
        pytest.param(b'{"x": ' + b"[" * 100_000, id="a hundred thousand brackets"),
    ],
)
def test_anything_else_is_one_clear_error(data: bytes) -> None:
    with pytest.raises((BadStream, *UNREADABLE)):
        answers().push(data)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=8)
)
def test_no_value_in_a_known_place_is_a_crash(value: object) -> None:
    for place in ("choices", "usage", "error"):
        try:
            answers().push(json.dumps({place: value}).encode())
        except (BadStream, *UNREADABLE):
            continue
