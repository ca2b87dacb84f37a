import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.chat.stop_sequences import StopSequences


def shown(pieces: list[str], sequences: tuple[str, ...]) -> tuple[list[str], bool]:
    """Return the visible text piece by piece, and whether a stop sequence ended it."""
    stops = StopSequences(sequences)
    texts = []
    for piece in pieces:
        texts.append(stops.push(piece))
        if stops.found is not None:
            return texts, True
    return [*texts, stops.finish()], False


@pytest.mark.parametrize(
    ("pieces", "stops", "texts", "stopped"),
    [
        pytest.param(["Hello", " world"], (), ["Hello", " world", ""], False, id="plain text passes at once"),
        pytest.param(["one END two"], ("END",), ["one "], True, id="a stop sequence inside a piece"),
        pytest.param(["one E", "N", "D two"], ("END",), ["one ", "", ""], True, id="a stop sequence over three pieces"),
        pytest.param(["E", "NEW"], ("END",), ["", "ENEW", ""], False, id="a beginning that turns out to be none"),
        pytest.param(["aaab"], ("aab",), ["a"], True, id="a stop sequence that begins inside a false start"),
        pytest.param(["x EN"], ("END",), ["x ", "EN"], False, id="what was held back is shown at the end"),
        pytest.param(["ab", "c"], ("bc", "abc"), ["", ""], True, id="the earliest of two stop sequences"),
    ],
)
def test_visible_text(pieces: list[str], stops: tuple[str, ...], texts: list[str], stopped: bool) -> None:
    assert shown(pieces, stops) == (texts, stopped)


@pytest.mark.parametrize(
    ("text", "stops", "found"),
    [("abc", ("c", "b"), "b"), ("abc", ("abc", "ab"), "abc"), ("abc", ("ab", "abc"), "ab"), ("abc", ("x",), None)],
)
def test_the_earliest_one_is_named(text: str, stops: tuple[str, ...], found: str | None) -> None:
    stopped = StopSequences(stops)
    stopped.push(text)
    stopped.push(".")
    assert stopped.found == found


def cut(text: str, borders: list[int]) -> list[str]:
    points = [0, *sorted(border % (len(text) + 1) for border in borders), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(points)]


@given(
    st.text(alphabet="abcä"),
    st.lists(st.text(alphabet="abcä", min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(min_value=0)),
)
def test_earliest_stop_sequence_wins(text: str, stops: list[str], borders: list[int]) -> None:
    texts, stopped = shown(cut(text, borders), tuple(stops))
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    visible = "".join(texts)
    assert stopped == bool(found)
    if found:
        # A later piece may complete a longer sequence that began earlier; the visible text never extends past the first match.
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(visible)
        assert len(visible) < ends
        assert not any(stop in visible for stop in stops)
    else:
        assert visible == text
