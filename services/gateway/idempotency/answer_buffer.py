"""What there is of one answer that is being made: its numbered chunks, how far each reader is, and whether there is room for more. Pure.

A chunk is a piece of text, or some vectors. Chunks are numbered from 1 on without a gap. What only says what the answer waits for has
the number 0, and only the latest of it is kept, until the next chunk.
"""

from dataclasses import dataclass
from typing import Generic, NewType, TypeVar

from shared import errors
from shared.api.embedding import Vectors
from shared.api.inference import Chunk, TokenLogprob

ReaderId = NewType("ReaderId", int)
#: What an answer comes in.
Piece = TypeVar("Piece", bound=Chunk | Vectors)

#: Of one answer. 32,768 tokens in one chunk each would take 15 MB here; 4 MiB are some 9,500, far more than almost any answer has.
MOST_BYTES = 4 * 1024 * 1024
#: How far an answer that is not kept may run ahead of its fastest reader: as far as Envoy's and our own links' buffers go. Who reads
#: 1 KB/s holds 64 KiB of memory and the worker waits. A slower reader of the same answer holds nobody up and costs nothing more:
#: what it still has to read is there anyhow, for who joins later.
AHEAD_BYTES = 64 * 1024

#: What CPython takes for the objects of a chunk, by sys.getsizeof, rounded up.
_CHUNK_BYTES, _TOKEN_BYTES, _CHANCE_BYTES, _CALL_BYTES, _CHARACTER_BYTES, _VECTOR_BYTES = 400, 40, 200, 400, 4, 48


@dataclass(slots=True)
class _BufferReader:
    #: The last chunk that it has.
    number: int
    #: The same in bytes of the whole answer.
    offset: int
    #: The last word on waiting that it has.
    waiting: int = 0


class AnswerBuffer(Generic[Piece]):
    """One answer. ``kept``: it is made to its end also without readers, and does not wait for them while it has room."""

    def __init__(self, *, kept: bool, most_bytes: int = MOST_BYTES, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.kept = kept
        self._most_bytes = most_bytes
        self._ahead_bytes = ahead_bytes
        self._chunks: list[Piece] = []
        #: Of each chunk, where it ends in bytes of the whole answer.
        self._ends: list[int] = []
        #: Chunks that were forgotten, and their bytes.
        self._gone, self._gone_bytes = 0, 0
        self._written = 0
        #: The last word on waiting; None since there is text.
        self._waiting: Piece | None = None
        #: Grows with every word on waiting; 0 before the first.
        self._waits = 0
        self._readers: dict[ReaderId, _BufferReader] = {}
        self._joined = 0

    @property
    def last(self) -> int:
        """The number of the newest chunk; 0 before the first."""
        return self._gone + len(self._chunks)

    @property
    def size(self) -> int:
        """In bytes, as far as it is still here."""
        return self._written - self._gone_bytes

    @property
    def whole(self) -> tuple[Piece, ...] | None:
        """All its chunks; None where the first ones were forgotten."""
        return None if self._gone else tuple(self._chunks)

    @property
    def is_read(self) -> bool:
        return bool(self._readers)

    @property
    def wanted(self) -> bool:
        """Whether anybody would miss it."""
        return self.kept or self.is_read

    # --- who makes it -----------------------------------------------------------------------------------------------

    def add(self, chunk: Piece) -> None:
        if chunk.waiting:
            self._waiting = chunk
            self._waits += 1
            return
        self._waiting = None
        self._written += size_of(chunk)
        self._chunks.append(chunk)
        self._ends.append(self._written)

    def make_room(self, *, crowded: bool = False) -> bool:
        """Whether it may go on; forgets what every reader has, where the answer is too long to be kept whole. ``crowded``: all
        answers together take too much, so this one keeps no more than what its readers still need."""
        if not self.kept and self._readers and self._ahead > self._ahead_bytes:
            return False
        most = self._ahead_bytes if crowded else self._most_bytes
        if self.size >= most:
            self._forget()
        return self.size < most or not self._readers

    @property
    def _ahead(self) -> int:
        return self._written - max(reader.offset for reader in self._readers.values())

    def _forget(self) -> None:
        read_by_all = min((reader.number for reader in self._readers.values()), default=self.last) - self._gone
        count = max(0, min(read_by_all, len(self._chunks)))
        if not count:
            return
        self._gone += count
        self._gone_bytes = self._ends[count - 1]
        del self._chunks[:count], self._ends[:count]

    # --- who reads it -----------------------------------------------------------------------------------------------

    def join(self, after: int) -> ReaderId:
        """Reads on behind the chunk ``after``, which may still be to come. Raises AnswerGone where what follows was forgotten."""
        if after < self._gone:
            raise errors.AnswerGone(
                f"chunk {after + 1} of this answer is no longer here: it is too long to be kept whole",
                hint="send the request again under another idempotency key",
            )
        self._joined += 1
        reader = ReaderId(self._joined)
        self._readers[reader] = _BufferReader(after, self._offset(after))
        return reader

    def leave(self, reader: ReaderId) -> None:
        """Safe to call twice."""
        self._readers.pop(reader, None)

    def next(self, reader: ReaderId) -> tuple[int, Piece] | None:
        """What this reader has not had yet; None where that is nothing for now."""
        found = self._readers[reader]
        position = found.number - self._gone
        if position < len(self._chunks):
            found.number += 1
            found.offset = self._ends[position]
            return found.number, self._chunks[position]
        if self._waiting is not None and found.waiting < self._waits:
            found.waiting = self._waits
            return 0, self._waiting
        return None

    def _offset(self, number: int) -> int:
        if number >= self.last:
            return self._written
        return self._ends[number - self._gone - 1] if number > self._gone else self._gone_bytes


def size_of(chunk: Chunk | Vectors) -> int:
    """Of its objects in memory, never too few."""
    if isinstance(chunk, Vectors):
        return _CHUNK_BYTES + sum(_VECTOR_BYTES + len(vector) for vector in chunk.vectors)
    calls = sum(_CALL_BYTES + _CHARACTER_BYTES * len(call.name + call.arguments) for call in chunk.tool_calls)
    logprobs = sum(_logprob_bytes(one) for one in chunk.logprobs)
    return _CHUNK_BYTES + _CHARACTER_BYTES * len(chunk.text) + _TOKEN_BYTES * len(chunk.token_ids) + logprobs + calls


def _logprob_bytes(logprob: TokenLogprob) -> int:
    return _CHANCE_BYTES * (2 + len(logprob.top))
