"""Keeps the files of models on an object store: an OCI image layout, with the pieces of unfinished uploads beside it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from hashlib import sha256
from uuid import UUID

from shared import config, errors
from shared.amounts import show_bytes
from shared.models import block_list, image_layout, manifest
from shared.stores import object_credentials, objects
from shared.stores.objects import ObjectMissing, ObjectStore

#: Whole blocks, and no more memory than a piece.
_RANGE_BYTES = 8 * block_list.BLOCK_BYTES
#: Stays free on the disk of a folder.
_RESERVE_BYTES = 5 << 30
#: Called with what was read.
OnBytes = Callable[[bytes], Awaitable[None]]


class _OtherBlob(Exception):
    """The pieces aren't the blob."""


class ModelOrigin:
    """Raises StoreUnavailable, and ObjectMissing for what isn't there."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def open(cls, address: str, settings: config.Settings) -> "ModelOrigin":
        """Raises BadSettings."""
        return cls(objects.open_store(address, object_credentials.of(settings)))

    async def ensure_room(self, size: int) -> None:
        """Raise InsufficientStorage unless a folder's disk has room for the pieces of an upload and for the blob."""
        free = await self._store.free_bytes()
        if free is not None and free - _RESERVE_BYTES < 2 * size:
            raise errors.InsufficientStorage(
                f"the upload needs {show_bytes(2 * size)} until it is checked, but {show_bytes(max(0, free - _RESERVE_BYTES))} are free",
                hint="free disk space at the gateway, or let MODEL_ORIGIN name another store",
            )

    async def has(self, digest: str) -> bool:
        try:
            await self._store.head(_blob(digest))
        except ObjectMissing:
            return False
        return True

    async def put(self, digest: str, data: bytes) -> None:
        await self._store.put(_blob(digest), data)

    async def read(self, digest: str, max_bytes: int) -> bytes:
        """Return a small blob after checking it. Raises BadRequest if it is too long or damaged."""
        if (await self._store.head(_blob(digest))).size > max_bytes:
            raise errors.BadRequest(f"{digest} has more than {max_bytes} bytes")
        data = await self._store.get(_blob(digest))
        if (actual := manifest.digest_of(data)) != digest:
            raise damaged(digest, actual)
        return data

    async def read_range(self, digest: str, start: int, length: int) -> tuple[bytes, int]:
        """Return bytes, fewer if the blob ends before, and the size of the blob."""
        size = (await self._store.head(_blob(digest))).size
        end = min(start + length, size)
        return (await self._store.get(_blob(digest), start, end) if start < end else b""), size

    async def hash(self, digest: str, size: int, on_bytes: OnBytes) -> bytes:
        """Read a blob of this size, and return the list of its blocks. Raises BadRequest if it is damaged."""
        stored = (await self._store.head(_blob(digest))).size
        if stored != size:
            raise errors.BadRequest(f"{digest} has {stored} bytes, not {size}")
        whole, blocks = sha256(), bytearray()

        def compute(data: bytes) -> None:
            whole.update(data)
            blocks.extend(b"".join(block_list.compute([data])))

        for start in range(0, size, _RANGE_BYTES):
            data = await self._store.get(_blob(digest), start, min(start + _RANGE_BYTES, size))
            await asyncio.to_thread(compute, data)
            await on_bytes(data)
        if (actual := f"sha256:{whole.hexdigest()}") != digest:
            raise damaged(digest, actual)
        return bytes(blocks)

    async def delete(self, digests: Iterable[str]) -> None:
        await self._store.delete([_blob(digest) for digest in digests])

    async def write_index(self, versions: Iterable[tuple[str, str, int]]) -> None:
        """Write which manifests there are: names, digests and sizes."""
        await self._store.put(f"models/{image_layout.LAYOUT_FILE}", image_layout.LAYOUT)
        await self._store.put(f"models/{image_layout.INDEX_FILE}", image_layout.encode_index(versions))

    # --- uploads

    async def put_piece(self, upload: UUID, index: int, data: bytes) -> None:
        await self._store.put(f"{_pieces(upload)}/{index:07}", data)

    async def join(self, upload: UUID, digest: str, size: int, piece_bytes: int, on_bytes: OnBytes) -> str:
        """Give the pieces of an upload the blob's name if they are the blob. Return the digest that they have."""
        whole = sha256()

        async def read() -> AsyncIterator[bytes]:
            for index in range(-(-size // piece_bytes)):
                data = await self._store.get(f"{_pieces(upload)}/{index:07}")
                await asyncio.to_thread(whole.update, data)
                await on_bytes(data)
                yield data
            # Before the store has seen the end: it drops what it has.
            if f"sha256:{whole.hexdigest()}" != digest:
                raise _OtherBlob

        try:
            await self._store.put_stream(_blob(digest), read(), size)
        except (_OtherBlob, ObjectMissing):
            pass
        return f"sha256:{whole.hexdigest()}"

    async def forget(self, upload: UUID) -> None:
        """Delete the pieces of an upload."""
        await self._store.delete([found.name async for found in self._store.list(_pieces(upload))])

    async def delete_unfinished(self) -> None:
        await self._store.delete_unfinished()


def damaged(expected: str, actual: str) -> errors.BadRequest:
    return errors.BadRequest(f"the bytes of {expected} are those of {actual}", hint="upload it again")


def _blob(digest: str) -> str:
    return f"models/{image_layout.blob(digest)}"


def _pieces(upload: UUID) -> str:
    return f"models/uploads/{upload}"
