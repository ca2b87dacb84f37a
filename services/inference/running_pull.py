"""A file that one worker pulls from a public source and others copy from it meanwhile.

The puller tells the gateway the SHA-256 of each block that has arrived, and the others ask there. A list that nobody has checked only keeps
the blocks of several workers consistent: the whole is checked at the end, as after a copy of a file that was there before.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import BinaryIO

from pyhyperswarm import SwarmError
from pyhyperswarm.block_copies import BlockCopies, CopyFile, Ending

from services.inference.mesh_origin import MeshOrigin
from services.inference.models.model_copy import CopyProgress, ModelCopy
from services.inference.models.model_store import ModelStore, disk_bytes
from services.inference.version_copy import CopyReport, Exchange, held_partial
from shared import errors
from shared.api.inference import BegunFile, PullProgress
from shared.api.model_copies import MAX_RUNNING_BLOCKS, RunningPull
from shared.models import block_list
from shared.models.block_list import BLOCK_BYTES, DIGEST_BYTES
from shared.models.copy_plan import all_blocks
from shared.models.manifest import VersionFile
from shared.node import lifecycle
from shared.telemetry import logs
from shared.types import ModelName, NodeId

#: Who copies less than half of what the puller gets meanwhile, for so long, pulls by itself.
LAG_SECONDS = 5.0

_log = logs.get()

#: Tells the gateway, which answers with what to go on, if at all.
Tell = Callable[[RunningPull], Awaitable[RunningPull | None]]


class RunningOffer:
    """Lets others copy what a program of this worker pulls. Implements ``CopyListener``: this worker asks nobody."""

    def __init__(self, copies: BlockCopies, tell: Tell | None) -> None:
        """Without ``tell``, nothing is offered."""
        self._copies, self._tell = copies, tell
        self._file: CopyFile | None = None
        self._opened: BinaryIO | None = None
        self._is_open = False
        self._told = 0
        #: The SHA-256 of the blocks that have arrived.
        self.blocks = b""

    def begin(self, file: BegunFile) -> None:
        path = Path(file.path)
        self._file = CopyFile(bytes.fromhex(file.digest), file.size, path.with_suffix(".blocks"), path)

    async def progressed(self, progress: PullProgress) -> None:
        if self._file is None or self._tell is None or not self._copies.is_running:
            return
        try:
            await self._offer(self._file, self._tell, min(progress.done_bytes, self._file.size))
        except (errors.AimeshError, OSError, SwarmError) as error:
            _log.info("a model is not offered while it is pulled", reason=str(error))

    async def close(self, *, is_whole: bool) -> None:
        """``is_whole``: the program has succeeded."""
        if self._file is not None and is_whole and self._opened is not None:
            await self.progressed(PullProgress("", self._file.size))
        if self._file is not None:
            await self._close(self._file, is_whole=is_whole)

    async def _offer(self, file: CopyFile, tell: Tell, size: int) -> None:
        first, count = len(self.blocks) // DIGEST_BYTES, file.count if size == file.size else size // BLOCK_BYTES
        if count < first:  # the program has begun anew
            await self._close(file, is_whole=False)
            self.blocks, self._told, first = b"", 0, 0
        if self._opened is None:
            self._opened = await asyncio.to_thread(open, file.partial, "rb")
        self.blocks += await asyncio.to_thread(_hash, self._opened, file, first, count)
        if not self._is_open:
            for path in (file.blocks, file.bitmap):
                await asyncio.to_thread(path.touch, 0o600)
            await self._copies.open(file, all_blocks(count), self)
            self._is_open = True
        for block in range(first, count):
            await self._copies.add(file.digest, block)
        while self._told < count:
            new = self.blocks[self._told * DIGEST_BYTES :][: MAX_RUNNING_BLOCKS * DIGEST_BYTES]
            answer = await tell(RunningPull(f"sha256:{file.digest.hex()}", file.size, self._told, new))
            if answer is None or answer.start == self._told:
                return
            self._told = answer.start

    async def _close(self, file: CopyFile, *, is_whole: bool) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened, was_open, self._is_open = None, self._is_open, False
        if was_open:
            try:
                await self._copies.close(file, is_whole=is_whole)
            except (OSError, SwarmError) as error:
                _log.info("a model is not offered any more", reason=str(error))
        for path in (file.blocks, file.bitmap):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    def peer_has(self, key: bytes, blocks: int, queue: int) -> None: ...

    def peer_refused(self, key: bytes, block: int) -> None: ...

    def peer_ended(self, key: bytes, ending: Ending, why: str) -> None: ...

    def block_stored(self, key: bytes, block: int) -> None: ...

    def copy_stopped(self, why: str) -> None:
        self._is_open = False


class RunningCopy:
    """Copies what another worker pulls, as far as it has come."""

    def __init__(self, store: ModelStore, exchange: Exchange, name: ModelName, origin_of: Callable[[VersionFile], MeshOrigin]) -> None:
        self._store, self._exchange, self._name, self._origin_of = store, exchange, name, origin_of
        self._held: AsyncExitStack | None = None
        self._puller: NodeId | None = None
        self._copy: ModelCopy
        self._task: asyncio.Task[None]
        #: The blocks whose digests we have.
        self.known = 0
        #: The blocks that we have, and, when we last kept up, its time; and what both were at first.
        self._done, self._kept_up_at, self._first = 0, 0.0, (0, 0)

    async def follow(self, running: RunningPull) -> None:
        """Copy what the puller has now. Raises OSError, and AimeshError if others are no help."""
        if self._held is None or running.puller != self._puller or running.start != self.known:
            await self._begin(running)
        if running.start == self.known:
            file = self._copy.file
            blocks = running.blocks[: (file.count - self.known) * DIGEST_BYTES]
            await asyncio.to_thread(_write_at, file.blocks, self.known * DIGEST_BYTES, blocks)
            if not self.known:
                self._first, self._kept_up_at = (len(blocks) // DIGEST_BYTES, self._done), time.monotonic()
            self.known += len(blocks) // DIGEST_BYTES
            self._copy.known = all_blocks(self.known)
        first_known, first_done = self._first
        if 2 * (self._done - first_done) >= self.known - first_known:
            self._kept_up_at = time.monotonic()
        elif time.monotonic() - self._kept_up_at > LAG_SECONDS:
            raise errors.Unavailable("other workers give it much slower than its source")

    async def finish(self, running: RunningPull) -> None:
        """Copy the rest over the connections that we have, now that the puller has all. Raises what ``follow`` raises."""
        if self._held is None or (running.puller, running.start) != (self._puller, self.known):
            return
        await self.follow(running)
        done = -1
        while self.known == self._copy.file.count and done < self._done and not self._task.done():
            done = self._done
            await asyncio.wait({self._task}, timeout=LAG_SECONDS)

    async def stop(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.aclose()

    async def _begin(self, running: RunningPull) -> None:
        is_new, self._puller, self.known = self._held is None, running.puller, 0
        await self.stop()
        self._held = held = AsyncExitStack()
        await asyncio.to_thread(self._store.ensure_folders)
        key = running.digest.removeprefix("sha256:")
        partial = await held.enter_async_context(held_partial(self._store, key))
        await asyncio.to_thread(lambda: self._store.check_room(max(0, running.size - disk_bytes(partial))))
        report = CopyReport(self._store, key, self._name, running.size)

        def moved(progress: CopyProgress) -> None:
            self._done = progress.bytes // BLOCK_BYTES
            report.update(running.digest, progress)

        origin = self._origin_of(VersionFile(self._name, running.digest, running.size, ""))
        self._copy = self._exchange.copy_of(origin, partial, moved)
        self._copy.known = 0
        await asyncio.to_thread(_empty, self._copy.file, is_new=is_new)
        tasks = await held.enter_async_context(lifecycle.background())
        tasks.create_task(report.run())
        self._task = tasks.create_task(_run(self._copy))


async def _run(copy: ModelCopy) -> None:
    try:
        await copy.run()
    except (errors.AimeshError, OSError, SwarmError, ValueError) as error:
        _log.info("a model is not copied while another worker pulls it", reason=str(error))


def _hash(opened: BinaryIO, file: CopyFile, first: int, end: int) -> bytes:
    opened.seek(first * BLOCK_BYTES)
    return b"".join(block_list.compute(opened.read(file.length(block)) for block in range(first, end)))


def _empty(file: CopyFile, *, is_new: bool) -> None:
    """Forget the digests of all blocks, and which blocks are there unless that is from before."""
    file.blocks.write_bytes(bytes(file.count * DIGEST_BYTES))
    if not is_new:
        file.bitmap.unlink(missing_ok=True)


def _write_at(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as opened:
        opened.seek(place)
        opened.write(data)
