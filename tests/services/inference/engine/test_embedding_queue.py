import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.engine.embedding_loop import EmbeddingQueue, EmbeddingText, TextPiece


def texts(request: int, *lengths: int) -> list[EmbeddingText]:
    return [EmbeddingText(request, number, tuple(range(length)), 4) for number, length in enumerate(lengths)]


def shown(pieces: list[TextPiece]) -> list[tuple[int, int, int, int]]:
    """Return (slot, text number, start, number of tokens) of each piece."""
    return [(piece.slot, piece.text.number, piece.start, len(piece.tokens)) for piece in pieces]


def test_short_texts_share_a_batch() -> None:
    queue = EmbeddingQueue(4, whole=False)
    queue.submit(texts(1, 3, 2, 1))
    assert shown(queue.take(100)) == [(0, 0, 0, 3), (1, 1, 0, 2), (2, 2, 0, 1)]
    assert queue.idle


def test_long_text_continues_in_its_slot_and_others_share_its_batches() -> None:
    queue = EmbeddingQueue(4, whole=False)
    queue.submit(texts(1, 10, 3))
    assert shown(queue.take(4)) == [(0, 0, 0, 4)]
    assert shown(queue.take(4)) == [(0, 0, 4, 4)]
    assert shown(queue.take(4)) == [(0, 0, 8, 2), (1, 1, 0, 2)]
    assert shown(queue.take(4)) == [(1, 1, 2, 1)]


def test_texts_per_batch_are_limited_by_the_slots() -> None:
    queue = EmbeddingQueue(2, whole=False)
    queue.submit(texts(1, 1, 1, 1))
    assert [len(queue.take(100)), len(queue.take(100)), len(queue.take(100))] == [2, 1, 0]


def test_unsplittable_text_is_batched_alone_if_it_exceeds_the_budget() -> None:
    queue = EmbeddingQueue(4, whole=True)
    queue.submit(texts(1, 10, 2, 3))
    assert shown(queue.take(4)) == [(0, 0, 0, 10)]
    assert shown(queue.take(4)) == [(1, 1, 0, 2)]
    assert shown(queue.take(4)) == [(2, 2, 0, 3)]


def test_without_a_budget_one_token_is_read() -> None:
    queue = EmbeddingQueue(4, whole=False)
    queue.submit(texts(1, 2, 2))
    assert shown(queue.take(0)) == [(0, 0, 0, 1)]


def test_cancel_returns_the_slot_to_clear() -> None:
    queue = EmbeddingQueue(4, whole=False)
    queue.submit(texts(1, 1, 10, 1) + texts(2, 5))
    queue.take(4)
    assert queue.cancel(2) is None
    assert queue.cancel(1) == 1
    assert queue.idle
    assert queue.cancel(1) is None


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), max_size=6),
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.tuples(st.integers(-3, 20), st.none() | st.integers(0, 5)), max_size=60),
)
def test_every_text_is_read_once_in_order_within_the_memory(
    requests: list[list[int]], slots: int, whole: bool, turns: list[tuple[int, int | None]]
) -> None:
    queue, longest, step = EmbeddingQueue(slots, whole=whole), 30, 20
    for request, lengths in enumerate(requests):
        queue.submit(texts(request, *lengths))
    memory: dict[int, tuple[int, ...]] = {}
    read: list[tuple[int, int]] = []
    cancelled: set[int] = set()
    for budget, cancel in itertools.chain(turns, itertools.repeat((step, None))):
        if cancel is not None:
            cancelled.add(cancel)
            if (slot := queue.cancel(cancel)) is not None:
                assert memory.pop(slot)
        pieces = queue.take(budget)
        if not pieces:
            break
        assert len({piece.slot for piece in pieces}) == len(pieces) <= slots
        assert sum(len(piece.tokens) for piece in pieces) <= max(budget, 1, longest if whole else 0)
        for piece in pieces:
            assert piece.text.request not in cancelled
            held = memory.pop(piece.slot, ())
            assert len(held) == piece.start, "a gap, or a slot that is in use"
            memory[piece.slot] = (*held, *piece.tokens)
        assert sum(map(len, memory.values())) <= longest + step
        for piece in pieces:
            if piece.ends:
                assert memory.pop(piece.slot) == piece.text.tokens
                read.append((piece.text.request, piece.text.number))
    assert not memory
    assert read == sorted(read)
    whole_requests = {(request, number) for request, lengths in enumerate(requests) for number in range(len(lengths))}
    assert {one for one in whole_requests if one[0] not in cancelled} <= set(read) <= whole_requests
