import gc
import sys

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from services.gateway.facts.tally import NOTHING, Tally
from services.gateway.idempotency import recording
from services.gateway.idempotency.recording import ReaderId, Recording
from shared import errors
from shared.api.embedding import Vectors
from shared.api.generation import ToolCall
from shared.api.inference import Chunk, TokenChance, TokenLogprob


def chunk(number: int) -> Chunk:
    return Chunk(str(number), (number,))


def waiting(why: str) -> Chunk:
    return Chunk("", (), waiting=why)


def read_all(buffer: Recording, reader: ReaderId) -> list[int]:
    found = []
    while (one := buffer.next(reader)) is not None:
        found.append(one[0])
    return found


def test_chunks_are_numbered_from_one_and_reach_every_reader() -> None:
    buffer = Recording(kept=False)
    early, late = buffer.join(0), buffer.join(2)
    for number in range(1, 5):
        buffer.add(chunk(number), NOTHING)
    assert read_all(buffer, early) == [1, 2, 3, 4]
    assert read_all(buffer, late) == [3, 4]
    assert read_all(buffer, buffer.join(3)) == [4]
    assert buffer.last == 4


def test_a_reader_ahead_of_the_answer_gets_what_follows() -> None:
    buffer = Recording(kept=False)
    reader = buffer.join(2)
    buffer.add(chunk(1), NOTHING)
    buffer.add(chunk(2), NOTHING)
    assert read_all(buffer, reader) == []
    buffer.add(chunk(3), NOTHING)
    assert read_all(buffer, reader) == [3]


def test_only_the_latest_waiting_notice_is_read_once_and_never_after_text() -> None:
    buffer = Recording(kept=False)
    reader = buffer.join(0)
    buffer.add(waiting("first in line"), NOTHING)
    buffer.add(waiting("loading"), NOTHING)
    assert buffer.next(reader) == (0, waiting("loading"), NOTHING)
    assert buffer.next(reader) is None
    buffer.add(chunk(1), NOTHING)
    assert read_all(buffer, buffer.join(0)) == [1]
    buffer.add(waiting("another worker goes on"), NOTHING)
    assert read_all(buffer, reader) == [1, 0]
    assert buffer.whole == (chunk(1),)


def test_generation_runs_only_so_far_ahead_of_the_fastest_reader() -> None:
    buffer = Recording(kept=False, ahead_bytes=3 * (recording.size_of(chunk(1)) + recording._TALLY_BYTES))
    fast, slow = buffer.join(0), buffer.join(0)
    count = 0
    while buffer.make_room():
        buffer.add(chunk(count := count + 1), NOTHING)
    assert count == 4
    buffer.next(fast)
    assert buffer.make_room()
    buffer.leave(fast)
    assert not buffer.make_room()
    buffer.next(slow)
    assert buffer.make_room()


def test_a_kept_answer_waits_for_no_reader_until_it_is_too_long() -> None:
    buffer = Recording(kept=True, most_bytes=10 * recording.size_of(chunk(1)), ahead_bytes=1)
    reader = buffer.join(0)
    for number in range(1, 11):
        assert buffer.make_room()
        buffer.add(chunk(number), NOTHING)
    assert not buffer.make_room()
    assert buffer.next(reader) == (1, chunk(1), NOTHING)
    assert buffer.make_room()
    assert buffer.whole is None
    with pytest.raises(errors.AnswerGone, match="chunk 1 of this answer is no longer stored: the answer is too long to keep"):
        buffer.join(0)
    assert read_all(buffer, reader) == list(range(2, 11))
    buffer.leave(reader)
    # Without a reader, the answer continues in bounded memory.
    for number in range(11, 100):
        buffer.add(chunk(number), NOTHING)
        assert buffer.make_room()
        assert buffer.size <= 10 * recording.size_of(chunk(1))


def test_over_the_memory_limit_only_what_readers_need_is_kept() -> None:
    buffer = Recording(kept=True, ahead_bytes=2 * recording.size_of(chunk(1)))
    reader = buffer.join(0)
    for number in range(1, 6):
        buffer.add(chunk(number), NOTHING)
    assert buffer.make_room()
    assert not buffer.make_room(crowded=True)
    assert read_all(buffer, reader) == [1, 2, 3, 4, 5]
    assert buffer.make_room(crowded=True)
    assert buffer.size == 0


def test_each_chunk_of_a_long_answer_has_its_own_count() -> None:
    buffer = Recording(kept=False, most_bytes=3 * recording.size_of(chunk(1)))
    reader = buffer.join(0)
    for number in range(1, 20):
        buffer.add(chunk(number), Tally(ids=number))
        assert buffer.make_room()
        assert buffer.next(reader) == (number, chunk(number), Tally(ids=number))
    assert buffer.whole is None


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(Chunk("a", (70_000,)), id="a character"),
        pytest.param(Chunk("\N{GRINNING FACE}" * 50, tuple(range(10_000, 10_040))), id="characters of four bytes"),
        pytest.param(
            Chunk("a", (70_000,), logprobs=(TokenLogprob(TokenChance(70_000, b"a", -0.5), (TokenChance(70_001, b"b" * 8, -1.5),) * 20),)),
            id="log probabilities",
        ),
        pytest.param(Chunk("", (70_000,), tool_calls=(ToolCall("call_1", "weather", "{}" * 100),)), id="a tool call"),
        pytest.param(Vectors((b"1234",)), id="a vector"),
        pytest.param(Vectors(tuple(bytes([number]) * 4 for number in range(256))), id="many small vectors"),
        pytest.param(Vectors((b"12", bytes(65_536))), id="a large vector"),
    ],
)
def test_the_estimated_size_of_a_chunk_is_never_too_low(one: Chunk | Vectors) -> None:
    seen: set[int] = set()

    def measure(thing: object) -> int:
        if id(thing) in seen or thing is None or isinstance(thing, type):
            return 0
        seen.add(id(thing))
        return sys.getsizeof(thing) + sum(measure(inner) for inner in gc.get_referents(thing))

    assert recording.size_of(one) >= measure(one)
    assert measure(Tally(70_000, 70_001, 70_002, 70_003, 70_004, 70_005)) <= recording._TALLY_BYTES


class Readers(RuleBasedStateMachine):
    """Readers join and leave at any time; each receives every number once, in order, with its own text."""

    readers = Bundle("readers")

    @initialize(kept=st.booleans())
    def begin(self, kept: bool) -> None:
        self.buffer = Recording(kept=kept, most_bytes=12 * 500, ahead_bytes=4 * 500)
        self.added = 0
        self.seen: dict[ReaderId, list[int]] = {}
        self.after: dict[ReaderId, int] = {}

    @rule(crowded=st.booleans(), wide=st.integers(1, 20))
    def make(self, crowded: bool, wide: int) -> None:
        if self.buffer.make_room(crowded=crowded):
            self.added += 1
            self.buffer.add(Chunk(str(self.added) + " " * wide, (self.added,)), NOTHING)

    @rule()
    def wait(self) -> None:
        self.buffer.add(waiting(f"after {self.added}"), NOTHING)

    @rule(target=readers, back=st.integers(-2, 8))
    def join(self, back: int) -> object:
        after = max(0, self.added - back)
        try:
            reader = self.buffer.join(after)
        except errors.AnswerGone:
            assert self.buffer.whole is None
            return multiple()
        self.seen[reader], self.after[reader] = [], after
        return reader

    @rule(reader=readers, count=st.integers(1, 6))
    def read(self, reader: ReaderId, count: int) -> None:
        if reader not in self.seen:
            return
        for _ in range(count):
            found = self.buffer.next(reader)
            if found is None:
                assert max(self.after[reader], self.added) == self.after[reader] + len(self.seen[reader])
                return
            number, one, _ = found
            if number:
                assert one.text.strip() == str(number)
                self.seen[reader].append(number)
            else:
                assert one.waiting == f"after {self.added}"

    @rule(reader=readers)
    def leave(self, reader: ReaderId) -> None:
        self.buffer.leave(reader)
        self.seen.pop(reader, None)

    @invariant()
    def every_number_once_and_in_order(self) -> None:
        for reader, numbers in getattr(self, "seen", {}).items():
            assert numbers == list(range(self.after[reader] + 1, self.after[reader] + 1 + len(numbers)))

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "buffer"):
            assert self.buffer.size <= 12 * 500 + 600
            assert self.buffer.last == self.added

    def teardown(self) -> None:
        for reader, numbers in self.seen.items():
            while (found := self.buffer.next(reader)) is not None:
                numbers.append(found[0])
            rest = [number for number in numbers if number]
            assert rest == list(range(self.after[reader] + 1, max(self.after[reader], self.added) + 1))


TestReaders = Readers.TestCase
