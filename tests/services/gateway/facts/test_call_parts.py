"""Tool calls that arrive complete or in parts."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.facts.call_parts import CallParts
from shared.api.generation import ToolCall, ToolCallPart
from shared.api.inference import Chunk
from shared.types import FinishReason

_STOP = Chunk("", (), finish=FinishReason.STOP)


def parts(*found: ToolCallPart) -> Chunk:
    return Chunk("", (), call_parts=found)


@given(arguments=st.lists(st.lists(st.text(max_size=3), max_size=4), max_size=3), sizes=st.lists(st.integers(1, 5), max_size=12))
def test_calls_are_the_same_however_their_parts_arrive(arguments: list[list[str]], sizes: list[int]) -> None:
    pieces = []
    for index, texts in enumerate(arguments):
        pieces.append(ToolCallPart(index, "", f"c{index}", "f"))
        pieces += [ToolCallPart(index, text) for text in texts]
    chunks = []
    for size in (*sizes, len(pieces)):
        chunks.append(parts(*pieces[:size]))
        del pieces[:size]
    read, gathered = CallParts(), CallParts()
    sent = [part for chunk in (*chunks, _STOP) for part in read.add(chunk)]
    complete = [call for chunk in (*chunks, _STOP) for call in gathered.complete(chunk)]
    # The arguments of a call without any are an empty JSON object.
    assert complete == list(read.calls) == [ToolCall(f"c{index}", "f", "".join(texts) or "{}") for index, texts in enumerate(arguments)]
    joined = {index: "".join(part.arguments for part in sent if part.index == index) for index in range(len(arguments))}
    assert joined == {index: "".join(texts) or "{}" for index, texts in enumerate(arguments)}
    assert [part for part in sent if part.name] == [part for chunk in chunks for part in chunk.call_parts if part.name]


def test_a_call_is_complete_when_the_next_one_begins() -> None:
    calls = CallParts()
    assert calls.complete(parts(ToolCallPart(0, "{", "a", "f"))) == ()
    assert calls.complete(parts(ToolCallPart(0, "}"), ToolCallPart(1, "[", "b", "g"))) == (ToolCall("a", "f", "{}"),)
    assert calls.complete(_STOP) == (ToolCall("b", "g", "["),), "as the model wrote it"
    assert calls.complete(_STOP) == ()


def test_a_call_that_was_cut_off_is_no_complete_call() -> None:
    for written, expected in (('{"a": 1', ()), ("", ()), ("{}", (ToolCall("a", "f", "{}"),))):
        calls = CallParts()
        calls.add(parts(ToolCallPart(0, written, "a", "f")))
        assert calls.complete(Chunk("", (), finish=FinishReason.LENGTH)) == expected
        assert calls.calls == (ToolCall("a", "f", written),)


def test_only_the_first_call_where_one_is_wanted() -> None:
    calls = CallParts(parallel=False)
    calls.add(parts(ToolCallPart(0, "{", "a", "f"), ToolCallPart(1, "{}", "b", "g")))
    assert calls.complete(Chunk("", (), tool_calls=(ToolCall("c", "h", "{}"),))) == ()
    calls.add(parts(ToolCallPart(0, "}")))
    assert calls.complete(_STOP) == (ToolCall("a", "f", "{}"),)
