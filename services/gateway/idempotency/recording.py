"""Keeps the chunks of one running answer for several readers, each at its place, within memory limits. Pure.

A chunk is a piece of text or some vectors. Chunks are numbered from 1 without gaps. A waiting notice has the number 0; only the latest
one is kept, until the next chunk.
"""

from dataclasses import dataclass
from typing import Generic, NewType, TypeVar

from services.gateway.facts import tally
from services.gateway.facts.call_parts import pieces_of
from services.gateway.facts.tally import Tally
from shared import errors
from shared.api.embedding import Vectors
from shared.api.inference import Chunk, TokenLogprob

ReaderId = NewType("ReaderId", int)
#: The type of an answer's chunks.
Piece = TypeVar("Piece", bound=Chunk | Vectors)

#: Per answer. 4 MiB are about 9,500 tokens in one chunk each, more than almost any answer; 32,768 tokens would take 15 MB.
MAX_BYTES = 4 * 1024 * 1024
#: How far an answer that is not kept may run ahead of its fastest reader: about the buffer size of Envoy and of our own links. A reader
#: at 1 KB/s holds 64 KiB while the worker waits. A slower reader of the same answer costs nothing more, because its chunks are kept for
#: later readers anyway.
AHEAD_BYTES = 64 * 1024

#: CPython's memory for the objects of a chunk, by sys.getsizeof, rounded up.
_CHUNK_BYTES, _TOKEN_BYTES, _CHANCE_BYTES, _CALL_BYTES, _CHARACTER_BYTES, _VECTOR_BYTES, _TALLY_BYTES = 400, 40, 200, 400, 4, 48, 160


@dataclass(slots=True)
class _BufferReader:
    #: The last chunk read.
    number: int
    #: Where that chunk ends, in bytes of the whole answer.
    offset: int
    #: Number of the last waiting notice read.
    waiting: int = 0


class Recording(Generic[Piece]):
    """One answer. A ``kept`` answer is generated without readers, too, and doesn't wait for them while it has room. It is what a caller
    got, which is counted; any other is a worker's, and each of its readers gets the count of its own place."""

    def __init__(self, *, kept: bool, most_bytes: int = MAX_BYTES, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.kept = kept
        self._most_bytes = most_bytes
        self._ahead_bytes = ahead_bytes
        self._chunks: list[Piece] = []
        #: The count with each chunk; none of a kept answer.
        self._counts: list[Tally] = []
        #: Where each chunk ends, in bytes of the whole answer.
        self._ends: list[int] = []
        #: Number and bytes of dropped chunks.
        self._dropped, self._dropped_bytes = 0, 0
        self._written = 0
        #: The last waiting notice; None after a chunk.
        self._waiting: Piece | None = None
        #: Number of waiting notices so far.
        self._waits = 0
        self._readers: dict[ReaderId, _BufferReader] = {}
        self._joined = 0

    @property
    def last(self) -> int:
        """Return the number of the newest chunk; 0 before the first."""
        return self._dropped + len(self._chunks)

    @property
    def size(self) -> int:
        """Return the bytes of the chunks that are still buffered."""
        return self._written - self._dropped_bytes

    @property
    def whole(self) -> tuple[Piece, ...] | None:
        """Return all chunks; None if the first ones were dropped."""
        return None if self._dropped else tuple(self._chunks)

    @property
    def is_read(self) -> bool:
        return bool(self._readers)

    @property
    def wanted(self) -> bool:
        """Return whether to continue generating it."""
        return self.kept or self.is_read

    # --- writing ----------------------------------------------------------------------------------------------------

    def add(self, chunk: Piece, at: Tally) -> None:
        if chunk.waiting:
            self._waiting = chunk
            self._waits += 1
            return
        self._waiting = None
        self._written += size_of(chunk)
        self._chunks.append(chunk)
        if not self.kept:
            self._counts.append(at)
            self._written += _TALLY_BYTES
        self._ends.append(self._written)

    def make_room(self, *, crowded: bool = False) -> bool:
        """Return whether the answer may continue; drop what every reader has if it is too long to keep. ``crowded``: all answers together
        use too much memory, so keep only what this answer's readers need."""
        if not self.kept and self._readers and self._ahead > self._ahead_bytes:
            return False
        most = self._ahead_bytes if crowded else self._most_bytes
        if self.size >= most:
            self._forget()
        return self.size < most

    @property
    def _ahead(self) -> int:
        return self._written - max(reader.offset for reader in self._readers.values())

    def _forget(self) -> None:
        read_by_all = min((reader.number for reader in self._readers.values()), default=self.last) - self._dropped
        count = max(0, min(read_by_all, len(self._chunks)))
        if not count:
            return
        self._dropped += count
        self._dropped_bytes = self._ends[count - 1]
        del self._chunks[:count], self._ends[:count], self._counts[:count]

    # --- reading ----------------------------------------------------------------------------------------------------

    def join(self, after: int) -> ReaderId:
        """Add a reader after the chunk ``after``, which may be a future one. Raises AnswerGone if the next chunk was dropped."""
        if after < self._dropped:
            raise errors.AnswerGone(
                f"chunk {after + 1} of this answer is no longer stored: the answer is too long to keep",
                hint="send the request again with a new idempotency key",
            )
        self._joined += 1
        reader = ReaderId(self._joined)
        self._readers[reader] = _BufferReader(after, self._offset(after))
        return reader

    def leave(self, reader: ReaderId) -> None:
        """Remove a reader. Safe to call twice."""
        self._readers.pop(reader, None)

    def next(self, reader: ReaderId) -> tuple[int, Piece, Tally] | None:
        """Return the reader's next chunk or waiting notice, with the count; None if there is none yet."""
        found = self._readers[reader]
        position = found.number - self._dropped
        if position < len(self._chunks):
            found.number += 1
            found.offset = self._ends[position]
            return found.number, self._chunks[position], tally.NOTHING if self.kept else self._counts[position]
        if self._waiting is not None and found.waiting < self._waits:
            found.waiting = self._waits
            return 0, self._waiting, tally.NOTHING
        return None

    def _offset(self, number: int) -> int:
        if number >= self.last:
            return self._written
        return self._ends[number - self._dropped - 1] if number > self._dropped else self._dropped_bytes


def size_of(chunk: Chunk | Vectors) -> int:
    """Estimate the memory of the chunk's objects; never too low."""
    if isinstance(chunk, Vectors):
        return _CHUNK_BYTES + sum(_VECTOR_BYTES + len(vector) for vector in chunk.vectors)
    calls = sum(_CALL_BYTES + _CHARACTER_BYTES * len(call.name + call.arguments) for call in pieces_of(chunk))
    logprobs = sum(map(_logprob_bytes, chunk.logprobs))
    return _CHUNK_BYTES + _CHARACTER_BYTES * len(chunk.text + chunk.reasoning) + _TOKEN_BYTES * len(chunk.token_ids) + logprobs + calls


def _logprob_bytes(logprob: TokenLogprob) -> int:
    return _CHANCE_BYTES * (2 + len(logprob.top))
