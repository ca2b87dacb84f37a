"""A deployed model of a public source: one worker pulls it, and the others copy it from there.

The program that pulls checks the copy as if it had downloaded it, so a worker that lies costs time and nothing else.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from services.inference.mesh_origin import MeshOrigin
from services.inference.models.model_copy import CopyProgress
from services.inference.models.model_store import ModelStore, disk_bytes
from services.inference.running_pull import RunningCopy, RunningOffer
from services.inference.version_copy import CopyReport, Exchange, held_partial
from shared import errors
from shared.api import model_copies
from shared.api.inference import StoredModel
from shared.api.model_copies import AdvisePull, PulledFile, RunningPull
from shared.models import block_list, manifest
from shared.models.manifest import VersionFile
from shared.node import lifecycle
from shared.protocol.directory import Directory
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.types import ModelName

#: Of these sources the SHA-256 is known before the download.
_SOURCES = ("hf:", "ollama:", "oci:")
WAIT_SECONDS = 2.0
#: While there is something to copy.
FOLLOW_SECONDS = 0.5
#: So long without news of another worker's pull, a worker pulls by itself.
MAX_WAIT_SECONDS = 3600.0
#: So long without a block from another worker.
STALL_SECONDS = 60.0

_log = logs.get()


class _OnlyPeers(MeshOrigin):
    """Tells the gateway what we have, for others to copy, and leaves the public source to the program that pulls."""

    async def lease(self, done: Sequence[int], orphans: Sequence[int], most: int, have: int) -> Sequence[int]:
        await super().lease(done, (), 1, have)
        return ()


class PulledCopy:
    def __init__(self, rpc: RpcClient, nodes: Directory, store: ModelStore, exchange: Exchange) -> None:
        self._rpc, self._nodes, self._store, self._exchange = rpc, nodes, store, exchange

    async def get(self, name: ModelName, source: str) -> PulledFile | None:
        """Copy the model's file to where the program that pulls finds it, or return None: then the program has to download it."""
        if not self._exchanges(source):
            return None
        try:
            file = await self._advised(name, source)
            if file is not None:
                async with asyncio.timeout(STALL_SECONDS) as limit:
                    await self._copy(name, file, limit)
        except (errors.AimeshError, OSError, ValueError) as error:  # among them TimeoutError
            _log.info("a model is not copied from other workers", model=name, reason=str(error))
            return None
        return file

    @asynccontextmanager
    async def offered(self, name: ModelName, source: str, file: PulledFile | None) -> AsyncIterator[RunningOffer]:
        """Let others copy what a program pulls meanwhile, and has pulled at the end. ``file``: what ``get`` returned."""

        async def tell(running: RunningPull) -> RunningPull | None:
            return (await self._ask(name, AdvisePull(name, source, running=running))).running

        offer = RunningOffer(self._exchange.copies, tell if file is None and self._exchanges(source) else None)
        try:
            yield offer
        except BaseException:
            await offer.close(is_whole=False)
            raise
        await offer.close(is_whole=True)
        await self._offer(name, source, file, offer.blocks)

    async def _offer(self, name: ModelName, source: str, file: PulledFile | None, blocks: bytes) -> None:
        """``blocks``: the SHA-256 of all blocks, if they were all read on the way."""
        if file is not None:
            # Unless the program has taken it.
            self._store.copied(_hex(file.digest)).unlink(missing_ok=True)
        stored = await asyncio.to_thread(self._store.find, name)
        if stored is None or not self._exchanges(source):
            return
        try:
            if file is None and stored.parts == 1:
                file = await asyncio.to_thread(self._list, stored, blocks)
            await self._ask(name, AdvisePull(name, source, file, is_kept=file is None))
        except (errors.AimeshError, OSError) as error:
            _log.info("a model is not offered to other workers", model=name, reason=str(error))

    def _exchanges(self, source: str) -> bool:
        return source.startswith(_SOURCES) and self._exchange.shares and self._exchange.copies.is_running

    async def _advised(self, name: ModelName, source: str) -> PulledFile | None:
        loop, running = asyncio.get_running_loop(), RunningCopy(self._store, self._exchange, name, lambda file: self._origin(file, name))
        until = loop.time() + MAX_WAIT_SECONDS
        try:
            while loop.time() < until:
                advice = await self._ask(name, AdvisePull(name, source, known=running.known))
                if not advice.waits:
                    if advice.running is not None:
                        await running.finish(advice.running)
                    return advice.file
                if advice.running is not None:
                    await running.follow(advice.running)
                    until = loop.time() + MAX_WAIT_SECONDS if advice.running.blocks else until
                await asyncio.sleep(WAIT_SECONDS if advice.running is None else FOLLOW_SECONDS)
            return None
        finally:
            await running.stop()

    async def _ask(self, name: ModelName, request: AdvisePull) -> model_copies.PullAdvice:
        # All workers ask the same gateway about this name.
        return await self._origin(VersionFile(name, manifest.digest_of(name.encode()), 0, ""), name).ask(model_copies.advise_pull, request)

    async def _copy(self, name: ModelName, file: PulledFile, limit: asyncio.Timeout) -> None:
        """Raises OSError and AimeshError."""
        await asyncio.to_thread(self._store.ensure_folders)
        report = CopyReport(self._store, _hex(file.digest), name, file.size)

        def moved(progress: CopyProgress) -> None:
            is_whole = progress.bytes == file.size
            limit.reschedule(None if is_whole else asyncio.get_running_loop().time() + STALL_SECONDS)
            report.update(file.digest, progress)

        async with held_partial(self._store, _hex(file.digest)) as partial, lifecycle.background() as tasks:
            tasks.create_task(report.run())
            left = max(0, file.size - await asyncio.to_thread(disk_bytes, partial))
            await asyncio.to_thread(self._store.check_room, left)
            blocks = await self._copy_list(name, file, partial.with_suffix(".blocks"))
            origin = self._origin(VersionFile(name, file.digest, file.size, file.list_digest), name)
            await self._exchange.copy(origin, blocks, partial, self._store.blob(_hex(file.digest)), moved)
            await asyncio.to_thread(partial.replace, self._store.copied(_hex(file.digest)))

    async def _copy_list(self, name: ModelName, file: PulledFile, heard: Path) -> bytes:
        """Return the list of blocks. ``heard``: what we know of it from the puller. Raises OSError and AimeshError."""
        place = self._store.list_of_blocks(_hex(file.list_digest))
        blocks = await asyncio.to_thread(lambda: heard.read_bytes() if heard.exists() else b"")
        if manifest.digest_of(blocks) == file.list_digest:
            await asyncio.to_thread(place.write_bytes, blocks)
            return blocks
        list_file = VersionFile("list of blocks", file.list_digest, block_list.count(file.size) * block_list.DIGEST_BYTES, "")
        async with held_partial(self._store, _hex(file.list_digest)) as partial:
            block_list.check(file.list_blocks, list_file.size)
            await self._exchange.copy(self._origin(list_file, name), file.list_blocks, partial, place, lambda _: None)
            await asyncio.to_thread(partial.replace, place)
        return await asyncio.to_thread(place.read_bytes)

    def _list(self, stored: StoredModel, blocks: bytes = b"") -> PulledFile:
        """Write the list of a model's blocks. Blocks; raises OSError."""
        with self._store.file(stored).open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            if len(blocks) != block_list.count(size) * block_list.DIGEST_BYTES:
                opened.seek(0)
                blocks = b"".join(block_list.compute(iter(lambda: opened.read(block_list.BLOCK_BYTES), b"")))
        digest = manifest.digest_of(blocks)
        self._store.list_of_blocks(_hex(digest)).write_bytes(blocks)
        return PulledFile(f"sha256:{stored.digest}", size, digest, b"".join(block_list.compute([blocks])))

    def _origin(self, file: VersionFile, name: ModelName) -> _OnlyPeers:
        return _OnlyPeers(self._rpc, self._nodes, _read_nothing, file, name)


async def _read_nothing(_digest: str, _start: int, _length: int) -> bytes:
    raise errors.Unavailable("only other workers have it")


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
