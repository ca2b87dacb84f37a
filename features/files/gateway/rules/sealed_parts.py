"""Splits files into sealed parts. Pure.

A part is compressed, encrypted for its tenant, and bound to its file and number; the last one also to being the last. So a part that was
damaged or exchanged, and a file without its end, are noticed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.gateway.facts import tenant_encryption
from shared import errors
from shared.types import TenantId

#: Of plain text.
PART_BYTES = 4 << 20
#: Files up to here are in PostgreSQL.
INLINE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class PartPlace:
    """Whose part it is, and where in its file."""

    tenant: TenantId
    file: UUID
    number: int
    is_last: bool

    def seal(self, plain: bytes | bytearray, secret: str) -> bytes:
        return tenant_encryption.seal(plain, self.tenant, self._key, secret)

    def unseal(self, sealed: bytes, size: int, secret: str) -> bytes:
        """Raises FileDamaged."""
        plain = tenant_encryption.unseal(sealed, self.tenant, self._key, secret)
        if plain is None or len(plain) != size:
            raise errors.FileDamaged(
                f"part {self.number} of the file isn't what was stored", hint="upload the file again, and check the store"
            )
        return plain

    @property
    def _key(self) -> str:
        return f"file:{self.file}:{self.number}{':last' if self.is_last else ''}"


def object_name(file: UUID, number: int) -> str:
    return f"{folder(file)}/{number}"


def folder(file: UUID) -> str:
    return f"files/{file}"


class PartSplitter:
    """Collects pieces of any size. Only ``end`` knows which part is the last."""

    def __init__(self) -> None:
        self._part = bytearray()

    def push(self, piece: bytes) -> Iterator[bytearray]:
        """Yield parts that are not the last."""
        view = memoryview(piece)
        while view:
            if len(self._part) == PART_BYTES:
                part, self._part = self._part, bytearray()
                yield part
            room = PART_BYTES - len(self._part)
            self._part += view[:room]
            view = view[room:]

    def end(self) -> bytearray:
        return self._part


def slices(sizes: Sequence[int], start: int, end: int) -> Iterator[tuple[int, slice]]:
    """Yield the numbers of the parts that have the bytes from ``start`` to ``end``, and what of each."""
    at = 0
    for number, size in enumerate(sizes):
        if start < at + size and at < end:
            yield number, slice(max(0, start - at), min(size, end - at))
        at += size
