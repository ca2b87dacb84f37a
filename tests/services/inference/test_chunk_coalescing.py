"""Chunks are joined for callers that wait for the whole answer."""

from hypothesis import given
from hypothesis import strategies as st

from services.inference import service
from services.inference.service import CoalescedChunks
from shared.api.generation import ToolCallPart
from shared.api.inference import Chunk, TokenChance, TokenLogprob
from shared.types import FinishReason
from tests.services.inference.standins import Reader


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def word(number: int, answer: int = 0, finish: FinishReason | None = None) -> Chunk:
    chance = TokenChance(number, b"w", -0.5)
    return Chunk(f"w{number} ", (number,), answer, (TokenLogprob(chance),), finish=finish)


async def test_first_chunk_is_sent_immediately_and_later_ones_are_joined() -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    for number in range(5):
        await gathered.send(word(number))
    assert [chunk.text for chunk in reader.chunks] == ["w0 "]
    await gathered.flush()
    assert [chunk.token_ids for chunk in reader.chunks] == [(0,), (1, 2, 3, 4)]
    assert reader.chunks[1].text == "w1 w2 w3 w4 "
    assert [each.drawn.token_id for each in reader.chunks[1].logprobs] == [1, 2, 3, 4]


async def test_old_enough_chunk_is_sent_with_the_next() -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    for number in range(3):
        await gathered.send(word(number))
    clock.now += service.GATHER_SECONDS
    await gathered.send(word(3))
    assert [chunk.token_ids for chunk in reader.chunks] == [(0,), (1, 2, 3)]


async def test_chunk_size_is_bounded() -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    for number in range(1 + 3 * service.MAX_TOKENS):
        await gathered.send(word(number))
    assert [len(chunk.token_ids) for chunk in reader.chunks] == [1, *[service.MAX_TOKENS] * 3]


async def test_last_chunk_is_sent_immediately_and_marked() -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    await gathered.send(word(0))
    await gathered.send(word(1))
    await gathered.send(word(2, finish=FinishReason.LENGTH))
    assert [(chunk.token_ids, chunk.finish) for chunk in reader.chunks] == [((0,), None), ((1, 2), FinishReason.LENGTH)]


async def test_waiting_messages_are_sent_immediately() -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    await gathered.send(word(0))
    await gathered.send(Chunk("", (), waiting="loading"))
    assert [chunk.waiting for chunk in reader.chunks] == ["", "loading"]


async def test_calls_keep_their_order() -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    for number in range(3):
        await gathered.send(Chunk("", (number,), call_parts=(ToolCallPart(number, "{}", f"c{number}", "f"),)))
    await gathered.flush()
    assert [part.id for chunk in reader.chunks for part in chunk.call_parts] == ["c0", "c1", "c2"]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.3)), max_size=200))
async def test_nothing_is_lost_duplicated_or_mixed_up(steps: list[tuple[int, float]]) -> None:
    reader, clock = Reader(), Clock()
    gathered = CoalescedChunks(reader, clock)
    for number, (answer, pause) in enumerate(steps):
        clock.now += pause
        await gathered.send(word(number, answer))
    await gathered.flush()
    for answer in range(4):
        sent = [number for number, (of, _) in enumerate(steps) if of == answer]
        mine = [chunk for chunk in reader.chunks if chunk.answer == answer]
        assert [token for chunk in mine for token in chunk.token_ids] == sent
        assert "".join(chunk.text for chunk in mine) == "".join(f"w{number} " for number in sent)
