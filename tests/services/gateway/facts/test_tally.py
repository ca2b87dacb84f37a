import pytest

from services.gateway.facts import tally
from services.gateway.facts.tally import NOTHING, Tally
from shared.api.generation import ToolCall, ToolCallPart
from shared.api.inference import Chunk


@pytest.mark.parametrize(
    ("chunk", "at"),
    [
        (Chunk("text", (1, 2)), Tally(ids=2, pieces=1)),
        (Chunk("", (1, 2), reasoning="so"), Tally(ids=2, thoughts=2, pieces=1)),
        (Chunk("", (1,)), Tally(ids=1)),
        (Chunk("äöü.", ()), Tally(pieces=1, bytes=7, weight=3)),
        (Chunk("", (), reasoning="so"), Tally(pieces=1, bytes=2, weight=1)),
        (Chunk("", (), tool_calls=(ToolCall("id", "look", "{}"),)), Tally(pieces=1, bytes=6, weight=2)),
        (Chunk("", (), call_parts=(ToolCallPart(0),)), Tally(pieces=1)),
        (Chunk("", ()), NOTHING),
    ],
)
def test_a_chunk_is_counted_by_its_ids_else_by_its_bytes(chunk: Chunk, at: Tally) -> None:
    assert tally.count(NOTHING, chunk) == at


def test_a_count_goes_on_from_the_one_before() -> None:
    before = Tally(7, 10, 3, 4, 20, 8)
    assert tally.count(before, Chunk("a", (1,), reasoning="b")) == Tally(7, 11, 4, 5, 20, 8)
    assert tally.count(before, Chunk("four", ())) == Tally(7, 10, 3, 5, 24, 10)


@pytest.mark.parametrize(
    ("at", "claimed", "most", "tokens"),
    [
        pytest.param(Tally(ids=5, pieces=9, bytes=9), 1000, 3, 5, id="ids decide"),
        pytest.param(Tally(pieces=4, bytes=400), 90, 1000, 90, id="a claim that the text may have"),
        pytest.param(Tally(pieces=4, bytes=6), 1000, 1000, 70, id="a claim that it can't have"),
        pytest.param(Tally(pieces=4, bytes=400), 90, 60, 60, id="more than is held"),
        pytest.param(Tally(pieces=4, bytes=400), 0, 1000, 4, id="no claim"),
        pytest.param(Tally(pieces=4, bytes=400), -9, 3, 3, id="an impossible claim"),
        pytest.param(NOTHING, 0, 10, 0, id="nothing"),
    ],
)
def test_what_is_billed(at: Tally, claimed: int, most: int, tokens: int) -> None:
    assert tally.billed(at, claimed, most) == tokens
