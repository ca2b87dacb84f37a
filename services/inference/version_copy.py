"""Gets a version of a model from the mesh's store: its manifest, the lists of its blocks, and its files block by block.

A block is written after its SHA-256 matched. What an earlier attempt left is checked and kept.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import FileIO
from pathlib import Path

from services.inference.models.model_store import ModelStore, check_store_name
from shared import errors
from shared.api import model_copies
from shared.api.inference import Assignment, PullProgress, StoredModel
from shared.api.model_copies import MAX_RANGE_BYTES, VERSION_SOURCE, ReadBlob
from shared.gguf import gguf_header
from shared.gguf.gguf_header import NotAModel
from shared.models import block_list, manifest
from shared.models.block_list import BLOCK_BYTES, DIGEST_BYTES
from shared.models.manifest import VersionFile
from shared.rpc import RpcClient
from shared.timing.backoff import Backoff
from shared.types import ModelName

_READ_SECONDS = 60.0
#: In a row without a block.
_MOST_FAILURES = 8
_BACKOFF = Backoff(first_seconds=0.2, longest_seconds=8.0, jitter=0.5)
_NOTE_SECONDS = 0.5


class DamagedBlob(errors.PeerError):
    """The store sent other bytes than the manifest names."""


@dataclass(slots=True)
class _Progress:
    """Tells other processes of the machine how far a copy is."""

    store: ModelStore
    key: str
    name: ModelName
    total_bytes: int
    done_bytes: int = 0
    _began: float = 0.0
    _first_bytes: int = 0
    _noted_at: float = 0.0

    def add(self, size: int) -> None:
        """Blocks."""
        now = time.monotonic()
        if not self._began:
            self._began, self._first_bytes = now, self.done_bytes
        self.done_bytes += size
        if now - self._noted_at >= _NOTE_SECONDS:
            self._noted_at = now
            speed = (self.done_bytes - self._first_bytes) / max(0.001, now - self._began)
            self.store.note_progress(self.key, self.name, PullProgress("copying", self.done_bytes, self.total_bytes, round(speed)))


class VersionCopy:
    def __init__(self, rpc: RpcClient, store: ModelStore) -> None:
        self._rpc = rpc
        self._store = store

    async def get(self, name: ModelName, source: str, assignment: Assignment) -> None:
        """Put a version into the store. Raises BadRequest, TooLarge, and PeerError after several attempts."""
        check_store_name(name)
        digest = source.removeprefix(VERSION_SOURCE)
        version = manifest.read(await self._read_small(digest, manifest.MAX_MANIFEST_BYTES))
        files = sorted(version.files, key=lambda file: file.path)
        lists = [await self._read_small(file.blocks, block_list.MAX_LIST_BYTES) for file in files]
        await asyncio.to_thread(self._store.ensure_folders)
        async with AsyncExitStack() as held:
            partials = [await held.enter_async_context(self._held(_hex(file.digest))) for file in files]
            there = sum(each.stat().st_size for each in partials if each.exists())
            await asyncio.to_thread(self._store.check_room, max(0, version.size - there))
            progress = _Progress(self._store, _hex(files[0].digest), name, version.size)
            for file, blocks, each in zip(files, lists, partials, strict=True):
                block_list.check(blocks, file.size)
                await self._get_file(file, blocks, each, progress)
            await asyncio.to_thread(self._commit, name, source, list(zip(files, partials, strict=True)), assignment)

    @asynccontextmanager
    async def _held(self, key: str) -> AsyncIterator[Path]:
        """Lock a partial file, also against other processes."""
        holder = self._store.partial(key, lambda: None)
        path = await asyncio.to_thread(holder.__enter__)
        try:
            yield path
        finally:
            await asyncio.to_thread(holder.__exit__, None, None, None)

    async def _read_small(self, digest: str, max_bytes: int) -> bytes:
        """Read a blob whole. Raises DamagedBlob."""
        data, failures = bytearray(), 0
        while True:
            try:
                part = await self._read(digest, len(data), MAX_RANGE_BYTES)
            except errors.PeerError as error:
                failures = await _pause(failures, error)
                continue
            data += part
            if len(data) > max_bytes:
                raise errors.BadRequest(f"{digest} has more than {max_bytes} bytes")
            if len(part) < MAX_RANGE_BYTES:
                break
        if manifest.digest_of(bytes(data)) != digest:
            raise DamagedBlob(f"the mesh's store has other bytes under {digest}")
        return bytes(data)

    async def _read(self, digest: str, start: int, length: int) -> bytes:
        data = bytearray()
        request = ReadBlob(digest, start, length)
        async with self._rpc.stream(model_copies.read_blob, request, deadline_seconds=_READ_SECONDS) as answer:
            async for part in answer:
                data += part.data
                if len(data) > length:
                    raise DamagedBlob(f"the mesh's store sent more of {digest} than was asked for")
        return bytes(data)

    async def _get_file(self, file: VersionFile, blocks: bytes, path: Path, progress: _Progress) -> None:
        whole = sha256()
        await asyncio.to_thread(_copy_local, self._store.blob(_hex(file.digest)), path, file.size)
        with await asyncio.to_thread(FileIO, path, "a+") as opened:
            done = await asyncio.to_thread(_keep_verified, opened, blocks, file.size, whole.update)
            progress.done_bytes += done
            failures = 0
            while done < file.size:
                try:
                    data = await self._read(file.digest, done, min(MAX_RANGE_BYTES, file.size - done))
                    verified = await asyncio.to_thread(_verified, data, blocks, done // BLOCK_BYTES, file.size)
                    if not verified:
                        raise DamagedBlob(f"the mesh's store sent other bytes of {file.path} than its manifest names")
                except errors.PeerError as error:
                    failures = await _pause(failures, error)
                    continue
                await asyncio.to_thread(_append, opened, data[:verified], whole.update)
                failures, done = 0, done + verified
                await asyncio.to_thread(progress.add, verified)
            await asyncio.to_thread(os.fsync, opened.fileno())
        if f"sha256:{whole.hexdigest()}" != file.digest:
            await asyncio.to_thread(path.unlink)
            raise errors.BadRequest(f"the blocks of {file.path} do not make its file", hint="push the version again")

    def _commit(self, name: ModelName, source: str, found: Sequence[tuple[VersionFile, Path]], assignment: Assignment) -> None:
        """Blocks. Raises BadRequest."""
        projectors = [each for each in found if _is_projector(each[1])]
        parts = [each for each in found if each not in projectors]
        known = self._store.find(name)
        model = StoredModel(
            name=name,
            digest=manifest.weights_digest(file.digest for file, _ in parts),
            size=sum(file.size for file, _ in found),
            source=source,
            stored_at=datetime.now(UTC),
            source_key=source,
            parts=len(parts),
            projector="".join(_hex(file.digest) for file, _ in projectors[:1]),
            assignment=None if known is not None and known.assignment is None else assignment,
        )
        self._store.commit([path for _, path in (*parts, *projectors[:1])], model)


async def _pause(failures: int, error: errors.PeerError) -> int:
    """Return the number of failures in a row. Raises the error after several."""
    if failures + 1 == _MOST_FAILURES:
        raise error
    await asyncio.sleep(_BACKOFF.pause(failures + 1))
    return failures + 1


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _copy_local(blob: Path, path: Path, size: int) -> None:
    """Begin with the file of another version, if there is one."""
    if path.exists() or not blob.is_file() or blob.stat().st_size != size:
        return
    shutil.copyfile(blob, path)


def _verified(data: bytes, blocks: bytes, first: int, size: int) -> int:
    """Return how many bytes of ``data``, which begins with the block ``first``, are those of the list."""
    done = 0
    while done < len(data):
        index = first + done // BLOCK_BYTES
        block = data[done : done + block_list.length(size, index)]
        if sha256(block).digest() != blocks[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]:
            break
        done += len(block)
    return done


def _keep_verified(opened: FileIO, blocks: bytes, size: int, hash_also: Callable[[bytes], None]) -> int:
    """Cut a partial file before its first block that is not verified. Return its size."""
    opened.seek(0)
    done = 0
    while done < size and (data := opened.read(block_list.length(size, done // BLOCK_BYTES))):
        verified = _verified(data, blocks, done // BLOCK_BYTES, size)
        hash_also(data[:verified])
        done += verified
        if verified < len(data):
            break
    opened.truncate(done)
    return done


def _append(opened: FileIO, data: bytes, hash_also: Callable[[bytes], None]) -> None:
    left = memoryview(data)
    while left:
        left = left[opened.write(left) :]
    hash_also(data)


def _is_projector(path: Path) -> bool:
    with contextlib.suppress(OSError, NotAModel), path.open("rb") as opened:
        return gguf_header.read_header(opened, path.stat().st_size).architecture == gguf_header.PROJECTOR
    return False
