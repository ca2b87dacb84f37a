"""Workers that copy a small file between real sidecars on loopback, and an origin in memory, for tests."""

import asyncio
import hashlib
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pyhyperswarm import PeerAddress, PeerConnection, Swarm, dht
from pyhyperswarm.block_copies import BLOCK_BYTES, BlockCopies, CopyFile, WholeFile

from services.inference.models.model_copy import CopyPeer, CopyProgress, DownloadRate, ModelCopy
from shared import errors
from shared.models.copy_plan import Leases
from shared.node.lifecycle import background

GRANT = b"please"
#: Longer than any test here takes on a slow machine.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Source:
    """A file with its blocks."""

    folder: Path
    body: bytes
    digest: bytes

    @property
    def whole(self) -> WholeFile:
        return WholeFile(self.folder / "whole", len(self.body))

    @property
    def count(self) -> int:
        return -(-len(self.body) // BLOCK_BYTES)

    def block(self, number: int) -> bytes:
        return self.body[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]

    def flipped(self) -> WholeFile:
        """Return a copy in which one bit of each block is wrong."""
        body, path = bytearray(self.body), self.folder / "flipped"
        for number in range(self.count):
            body[number * BLOCK_BYTES] ^= 1
        path.write_bytes(body)
        return WholeFile(path, len(body))


def make_source(folder: Path, blocks: float = 8.0) -> Source:
    rng, rest = random.Random(blocks), int(blocks % 1 * BLOCK_BYTES)
    body = b"".join(rng.randbytes(size) for size in [BLOCK_BYTES] * int(blocks) + [rest])
    (folder / "whole").write_bytes(body)
    source = read_source(folder)
    (folder / "blocks").write_bytes(b"".join(hashlib.sha256(source.block(number)).digest() for number in range(source.count)))
    return source


def read_source(folder: Path) -> Source:
    body = (folder / "whole").read_bytes()
    return Source(folder, body, hashlib.sha256(body).digest())


@dataclass
class MemoryOrigin:
    """The origin, and the gateway's leases."""

    source: Source
    is_away: bool = False
    sent: list[int] = field(default_factory=list)
    leases: Leases = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(self.source.count)

    async def give(self, block: int) -> bytes:
        if self.is_away:
            raise errors.Unavailable("the origin is away")
        self.sent.append(block)
        return self.source.block(block)


@dataclass
class WorkerOrigin:
    origin: MemoryOrigin
    worker: str

    async def lease(self, done: Sequence[int], orphans: Sequence[int], most: int, have: int) -> Sequence[int]:
        now = asyncio.get_running_loop().time()
        for block in done:
            self.origin.leases.done(self.worker, block, now)
        return () if self.origin.is_away else self.origin.leases.take(self.worker, now, orphans, most=most)

    async def read(self, block: int, size: int) -> bytes:
        body = await self.origin.give(block)
        assert len(body) == size
        return body


@dataclass
class Worker:
    name: str
    swarm: Swarm
    copies: BlockCopies
    folder: Path
    #: The keys of peers to read from.
    peers: list[bytes] = field(default_factory=list)
    reports: list[tuple[bytes, str]] = field(default_factory=list)
    on_report: Callable[[], None] = lambda: None
    progress: list[CopyProgress] = field(default_factory=list)
    dropped: dict[bytes, float] = field(default_factory=dict)
    connections: dict[bytes, PeerConnection] = field(default_factory=dict)
    #: Why connections were closed.
    closed: list[str] = field(default_factory=list)
    #: Set at each progress.
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> bytes:
        return self.swarm.public_key

    def file(self, source: Source) -> CopyFile:
        return CopyFile(source.digest, len(source.body), source.folder / "blocks", self.folder / "partial")

    def offers(self, whole: WholeFile | None) -> None:
        """Let everybody read this file, or what there is of one that is being copied."""
        self.copies.on_grant = lambda key, digest, grant: self.copies.allow(key, digest, whole)

    def copy(self, source: Source, origin: MemoryOrigin, rate: DownloadRate | None = None) -> ModelCopy:
        async def find_peers() -> list[CopyPeer]:
            return [CopyPeer(key, GRANT) for key in self.peers]

        def progressed(progress: CopyProgress) -> None:
            self.progress.append(progress)
            self.moved.set()

        return ModelCopy(
            copies=self.copies,
            file=self.file(source),
            origin=WorkerOrigin(origin, self.name),
            find_peers=find_peers,
            rate=rate or DownloadRate(None),
            report=self._report,
            on_progress=progressed,
            dropped=self.dropped,
        )

    def _report(self, key: bytes, why: str) -> None:
        self.reports.append((key, why))
        self.on_report()

    async def has_moved(self) -> CopyProgress:
        """Wait for the next progress."""
        self.moved.clear()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.moved.wait()
        return self.progress[-1]


async def finish(copy: ModelCopy, source: Source) -> None:
    """Run a copy to its end, and check the file."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await copy.run()
    assert copy.file.partial.read_bytes() == source.body


@asynccontextmanager
async def worker(
    name: str, folder: Path, nodes: list[PeerAddress] | None = None, host: str | None = dht.HOST, node: Path | None = None
) -> AsyncIterator[Worker]:
    """Run a swarm that others find by its key, and that takes everybody for a worker. ``node`` runs its sidecar."""
    (folder / name).mkdir(exist_ok=True)
    opened = Swarm(bootstrap=dht.shared() if nodes is None else nodes, host=host, node=node, copies=(copies := BlockCopies()))
    async with opened as swarm, background() as tasks:
        await swarm.join(secrets.token_bytes(32))
        await swarm.flush()

        async def accept() -> None:
            async for connection in swarm:
                made.connections[connection.key] = connection
                connection.open_window()
                connection.on_message = lambda message: None
                connection.on_closed = made.closed.append

        made = Worker(name, swarm, copies, folder / name)
        tasks.create_task(accept())
        yield made
