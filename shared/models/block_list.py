"""The blocks of a file: SHA-256 digests of 32 bytes, one after the other. Every block but the last has ``BLOCK_BYTES``.

A worker accepts a block from anybody, because it is checked on its own. Pure.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256

from shared import errors

BLOCK_BYTES = 1 << 20
DIGEST_BYTES = 32
#: Of files of 2 TiB.
MAX_LIST_BYTES = 64 << 20


def count(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def length(size: int, index: int) -> int:
    return min(BLOCK_BYTES, size - index * BLOCK_BYTES)


def compute(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the digest of each block of a file that comes in pieces of any size."""
    block, filled = sha256(), 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part = view[: BLOCK_BYTES - filled]
            block.update(part)
            filled, view = filled + len(part), view[len(part) :]
            if filled == BLOCK_BYTES:
                yield block.digest()
                block, filled = sha256(), 0
    if filled:
        yield block.digest()


def check(blocks: bytes, size: int) -> None:
    """Raise BadRequest if a list can't be that of a file with this size."""
    if len(blocks) != count(size) * DIGEST_BYTES:
        raise errors.BadRequest(
            f"the list of blocks has {len(blocks)} bytes; a file of {size} bytes needs {count(size) * DIGEST_BYTES}",
            hint="push the model again with `aicli models push`",
        )
