import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.sequence import AnswerText, StopSequences
from services.inference.tool_calls.tool_call_parser import ToolCallParser, ids_of
from services.inference.tool_calls.tool_format import ToolStyle
from shared.api.generation import Tool


def shown(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The visible text piece by piece, and whether a stop sequence ended it."""
    output = AnswerText(StopSequences(stops))
    texts = []
    for piece in pieces:
        step = output.push(piece)
        texts.append(step.text)
        if step.stopped:
            return texts, True
    return [*texts, output.finish().text], False


@pytest.mark.parametrize(
    ("pieces", "stops", "texts", "stopped"),
    [
        pytest.param([b"Hello", b" world"], (), ["Hello", " world", ""], False, id="plain text passes at once"),
        pytest.param(["ä".encode()[:1], "ä".encode()[1:]], (), ["", "ä", ""], False, id="half a character waits for its rest"),
        pytest.param(["a🦊".encode()[:3], "🦊b".encode()[2:]], (), ["a", "🦊b", ""], False, id="so does the middle of an emoji"),
        pytest.param([b"a", "🦊".encode()[:3]], (), ["a", "", ""], False, id="half a character at the end is dropped"),
        pytest.param([b"a\xffb"], (), ["a\ufffdb", ""], False, id="bytes that are no text become the replacement character"),
        pytest.param([b"one END two"], ("END",), ["one "], True, id="a stop sequence inside a piece"),
        pytest.param([b"one E", b"N", b"D two"], ("END",), ["one ", "", ""], True, id="a stop sequence over three pieces"),
        pytest.param([b"E", b"NEW"], ("END",), ["", "NEW"[:0] + "ENEW", ""], False, id="a beginning that turns out to be none"),
        pytest.param([b"aaab"], ("aab",), ["a"], True, id="a stop sequence that begins inside a false start"),
        pytest.param([b"x EN"], ("END",), ["x ", "EN"], False, id="what was held back is shown at the end"),
        pytest.param([b"ab", b"c"], ("bc", "abc"), ["", ""], True, id="the earliest of two stop sequences"),
        pytest.param(["Ende😀".encode()[:6], "Ende😀".encode()[6:]], ("😀",), ["Ende", ""], True, id="a stop sequence of half characters"),
    ],
)
def test_visible_text(pieces: list[bytes], stops: tuple[str, ...], texts: list[str], stopped: bool) -> None:
    assert shown(pieces, stops) == (texts, stopped)


def cut(raw: bytes, borders: list[int]) -> list[bytes]:
    points = [0, *sorted(border % (len(raw) + 1) for border in borders), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(points)]


@given(st.text(), st.lists(st.integers(min_value=0)))
def test_text_split_anywhere_gives_the_same_text(text: str, borders: list[int]) -> None:
    texts, _ = shown(cut(text.encode(), borders))
    assert "".join(texts) == text


@given(
    st.text(alphabet="abcä"),
    st.lists(st.text(alphabet="abcä", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(min_value=0)),
)
def test_earliest_stop_sequence_wins(text: str, stops: list[str], borders: list[int]) -> None:
    pieces = cut(text.encode(), borders)
    texts, stopped = shown(pieces, tuple(stops))
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    visible = "".join(texts)
    assert stopped == bool(found)
    if found:
        # A later piece may hold an earlier beginning of a longer sequence; what is shown never goes beyond the first match.
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(visible)
        assert len(visible) < ends
        assert not any(stop in visible for stop in stops)
    else:
        assert visible == text


CALL = '<tool_call>{"name": "look_up", "arguments": {"what": "sea"}}</tool_call>'


def parser() -> ToolCallParser:
    return ToolCallParser(ToolStyle.HERMES, (Tool("look_up"),), ids_of("request"))


@given(st.lists(st.integers(min_value=0)))
def test_call_split_anywhere_gives_the_same_call_without_text(borders: list[int]) -> None:
    output = AnswerText(StopSequences(()), parser())
    steps = [output.push(piece) for piece in cut(f"Let me see. {CALL}".encode(), borders)]
    steps.append(output.finish())
    (call,) = [call for step in steps for call in step.calls]
    assert (call.name, call.arguments) == ("look_up", '{"what": "sea"}')
    assert "".join(step.text for step in steps).strip() == "Let me see."


def test_stop_sequence_after_a_call_ends_the_answer_with_the_call() -> None:
    output = AnswerText(StopSequences(("END",)), parser())
    step = output.push(f"{CALL}END".encode())
    assert step.stopped
    assert [call.name for call in step.calls] == ["look_up"]


def test_incomplete_call_at_the_end_is_text() -> None:
    output = AnswerText(StopSequences(()), parser())
    text = output.push(CALL[:-20].encode()).text + output.finish().text
    assert text == CALL[:-20]
