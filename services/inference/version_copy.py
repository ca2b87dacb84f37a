"""Gets a version of a model: its manifest and the lists of its blocks from the mesh's store, and its files block by block, also from other
workers.

What an earlier attempt left is checked and kept.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path

from pyhyperswarm import SwarmError
from pyhyperswarm.block_copies import BlockCopies, CopyFile, WholeFile

from services.inference.mesh_origin import MeshOrigin
from services.inference.models.model_copy import CopyProgress, DownloadRate, ModelCopy
from services.inference.models.model_store import ModelStore, check_store_name, disk_bytes
from shared import errors
from shared.api import model_copies
from shared.api.inference import Assignment, PullProgress, StoredModel
from shared.api.model_copies import MAX_RANGE_BYTES, VERSION_SOURCE, ReadBlob
from shared.gguf import gguf_header
from shared.gguf.gguf_header import NotAModel
from shared.models import block_list, manifest
from shared.models.block_list import DIGEST_BYTES
from shared.models.manifest import VersionFile
from shared.node import lifecycle
from shared.protocol.directory import Directory
from shared.rpc import RpcClient
from shared.timing.backoff import Backoff
from shared.timing.transfer_speed import TransferSpeed
from shared.types import ModelName

_READ_SECONDS = 60.0
#: In a row without a block.
_MAX_FAILURES = 8
_BACKOFF = Backoff(first_seconds=0.2, longest_seconds=8.0, jitter=0.5)
_NOTE_SECONDS = 0.5
_LIMIT_SECONDS = 0.5


class DamagedBlob(errors.PeerError):
    """The store sent other bytes than the manifest names."""


@dataclass(slots=True)
class Exchange:
    """How this worker exchanges blocks with others."""

    copies: BlockCopies = field(default_factory=BlockCopies)
    #: Of all copies together.
    rate: DownloadRate = field(default_factory=lambda: DownloadRate(None))
    #: Whether others may read from us.
    shares: bool = True
    #: Files by their digest that are whole, and not yet in the store because their version isn't.
    _whole: dict[bytes, WholeFile] = field(default_factory=dict)

    @contextlib.contextmanager
    def offered(self, file: VersionFile, path: Path) -> Iterator[None]:
        digest = bytes.fromhex(_hex(file.digest))
        self._whole[digest] = WholeFile(path, file.size)
        yield
        self._whole.pop(digest, None)

    async def copy(
        self, origin: MeshOrigin, blocks: bytes, partial: Path, local: Path, on_progress: Callable[[CopyProgress], None]
    ) -> None:
        """Get a file, which begins with ``local`` if that is there. Raises OSError, and AimeshError."""
        file, copy = origin.file, self.copy_of(origin, partial, on_progress)
        whole = copy.file
        while True:
            checked = await asyncio.to_thread(_prepare, whole, blocks, local)
            try:
                await copy.run()
            except SwarmError as error:
                raise errors.Unavailable(f"Hyperswarm failed: {error}") from error
            if await asyncio.to_thread(_digest, partial) == file.digest:
                return
            # The disk has lost what was written before, unless all blocks have just been checked: then the list is wrong.
            await asyncio.to_thread((partial if checked else whole.bitmap).unlink)
            if checked:
                raise errors.BadRequest(f"the blocks of {file.path} do not make its file", hint="push the version again")

    def copy_of(self, origin: MeshOrigin, partial: Path, on_progress: Callable[[CopyProgress], None]) -> ModelCopy:
        """Return a copy that has not begun, with its list of blocks beside ``partial``."""
        file = origin.file
        return ModelCopy(
            copies=self.copies,
            file=CopyFile(bytes.fromhex(_hex(file.digest)), file.size, partial.with_suffix(".blocks"), partial),
            origin=origin,
            find_peers=origin.find_peers,
            rate=self.rate,
            report=origin.report,
            offers=self.shares,
            on_progress=on_progress,
        )

    def find_whole(self, store: ModelStore, digest: bytes) -> WholeFile | None:
        """Return a file that is not being copied."""
        if (found := self._whole.get(digest)) is not None:
            return found
        path = store.find_file(digest.hex())
        return None if path is None else WholeFile(path, path.stat().st_size)

    async def limit(self, bytes_per_second: float, is_busy: Callable[[], bool], is_paused: Callable[[], bool]) -> None:
        """Leave half of the rate to running answers, and send nothing while the owner has paused the machine; forever."""
        limits: tuple[float, float] | None = None
        while True:
            rate = bytes_per_second / 2 if is_busy() else bytes_per_second
            if (rate, up := 0.0 if is_paused() else rate) != limits:
                limits = rate, up
                self.rate.bytes_per_second = rate
                self.copies.set_rate(up)
            await asyncio.sleep(_LIMIT_SECONDS)


class CopyReport:
    """Tells other processes of the machine how far a version is."""

    def __init__(self, store: ModelStore, key: str, name: ModelName, total_bytes: int) -> None:
        self._store, self._key, self._name, self._total_bytes = store, key, name, total_bytes
        self._files: dict[str, CopyProgress] = {}
        self._speed: TransferSpeed | None = None

    def update(self, digest: str, progress: CopyProgress) -> None:
        self._files[digest] = progress

    def measure(self, now: float) -> PullProgress:
        files = self._files.values()
        done, from_peers = sum(each.bytes for each in files), sum(each.from_peers for each in files)
        # Without what an earlier attempt left.
        moved = from_peers + sum(each.from_origin for each in files)
        if self._speed is None and moved:
            self._speed = TransferSpeed(now, moved)
        speed = 0.0 if self._speed is None else self._speed.measure(now, moved)
        peers = max((each.peers for each in files), default=0)
        return PullProgress("copying", done, self._total_bytes, round(speed), from_peers, peers)

    async def run(self) -> None:
        while True:
            measured = self.measure(time.monotonic())
            noting = asyncio.get_running_loop().run_in_executor(None, self._store.note_progress, self._key, self._name, measured)
            try:
                await asyncio.shield(noting)
            finally:
                # The thread must not write after the partial file is gone.
                await noting
            await asyncio.sleep(_NOTE_SECONDS)


@asynccontextmanager
async def held_partial(store: ModelStore, key: str) -> AsyncIterator[Path]:
    """Lock a partial file, also against other processes."""
    holder = store.partial(key, lambda: None)
    path = await asyncio.to_thread(holder.__enter__)
    try:
        yield path
    finally:
        await asyncio.to_thread(holder.__exit__, None, None, None)


class VersionCopy:
    def __init__(self, rpc: RpcClient, nodes: Directory, store: ModelStore, exchange: Exchange) -> None:
        self._rpc, self._nodes, self._store, self._exchange = rpc, nodes, store, exchange

    async def get(self, name: ModelName, source: str, assignment: Assignment) -> None:
        """Put a version into the store. Raises BadRequest, TooLarge, and PeerError after several attempts."""
        check_store_name(name)
        digest = source.removeprefix(VERSION_SOURCE)
        content = await self._read_small(digest, manifest.MAX_MANIFEST_BYTES)
        version = manifest.read(content)
        files = sorted((file for file in version.files if file.path.endswith(".gguf")), key=lambda file: file.path)
        if not files:
            raise errors.BadRequest(f"{name} has no .gguf file", hint="push a model in the format GGUF")
        lists = [await self._read_small(file.blocks, block_list.MAX_LIST_BYTES) for file in files]
        await asyncio.to_thread(self._store.ensure_folders)
        async with AsyncExitStack() as held:
            partials = [await held.enter_async_context(held_partial(self._store, _hex(file.digest))) for file in files]
            there = await asyncio.to_thread(lambda: sum(map(disk_bytes, partials)))
            await asyncio.to_thread(self._store.check_room, max(0, version.size - there))
            progress = CopyReport(self._store, _hex(files[0].digest), name, version.size)
            tasks = await held.enter_async_context(lifecycle.background())
            tasks.create_task(progress.run())
            for file, blocks, each in zip(files, lists, partials, strict=True):
                block_list.check(blocks, file.size)
                origin = MeshOrigin(self._rpc, self._nodes, self._read, file, name)
                try:
                    local = self._store.blob(_hex(file.digest))
                    await self._exchange.copy(origin, blocks, each, local, partial(progress.update, file.digest))
                except OSError as error:
                    text = f"cannot write {each}: {error.strerror or error}"
                    raise errors.TooLarge(text, hint="free disk space; what is there stays") from error
                held.enter_context(self._exchange.offered(file, each))
            await asyncio.to_thread(self._commit, name, source, content, list(zip(files, partials, strict=True)), assignment)

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

    def _commit(
        self, name: ModelName, source: str, content: bytes, found: Sequence[tuple[VersionFile, Path]], assignment: Assignment
    ) -> None:
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
            part_digests=tuple(_hex(file.digest) for file, _ in parts) if len(parts) > 1 else (),
            projector="".join(_hex(file.digest) for file, _ in projectors[:1]),
            assignment=None if known is not None and known.assignment is None else assignment,
        )
        self._store.commit([path for _, path in (*parts, *projectors[:1])], model, content)


async def _pause(failures: int, error: errors.PeerError) -> int:
    """Return the number of failures in a row. Raises the error after several."""
    if failures + 1 == _MAX_FAILURES:
        raise error
    await asyncio.sleep(_BACKOFF.pause(failures + 1))
    return failures + 1


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _prepare(file: CopyFile, blocks: bytes, local: Path) -> bool:
    """Write the list of blocks, and find out which are there if nothing says so. Begin with the file of another version, if there is one.
    Returns whether blocks were checked."""
    if not file.blocks.exists() or file.blocks.read_bytes() != blocks:
        file.blocks.write_bytes(blocks)
    if file.bitmap.exists():
        return False
    if not file.partial.exists() and local.is_file() and local.stat().st_size == file.size:
        shutil.copyfile(local, file.partial)
    if not file.partial.exists():
        return False
    sound = 0
    with file.partial.open("rb") as opened:
        for index in range(file.count):
            if sha256(opened.read(file.length(index))).digest() == blocks[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]:
                sound |= 1 << index
    os.truncate(file.partial, file.size)
    file.bitmap.touch(0o600)
    file.save(sound)
    return True


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return f"sha256:{file_digest(opened, 'sha256').hexdigest()}"


def _is_projector(path: Path) -> bool:
    with contextlib.suppress(OSError, NotAModel), path.open("rb") as opened:
        return gguf_header.read_header(opened, path.stat().st_size).architecture == gguf_header.PROJECTOR
    return False
