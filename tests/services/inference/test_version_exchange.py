"""Workers of a real mesh that get one version: from the mesh's store by leases, and from each other through their sidecars."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from services.gateway.models.model_peers import ModelPeers
from services.inference import pulled_copy
from services.inference.model_pulls import ModelPulls
from services.inference.models.model_copy import ModelShare
from services.inference.models.model_store import ModelStore
from services.inference.pulled_copy import PulledCopy
from services.inference.settings import InferenceSettings
from services.inference.version_copy import Exchange, VersionCopy
from shared import errors
from shared.api import model_copies
from shared.api.inference import Assignment, EnsureModel, StoredModel
from shared.api.method import Nothing
from shared.api.model_copies import AdvisePull
from shared.models import block_list, manifest
from shared.models.block_list import BLOCK_BYTES
from shared.models.manifest import VersionConfig, VersionFile
from shared.node.member import Node
from shared.protocol.directory import ModelOffer
from shared.rpc import RpcCall, StreamCall, serves
from shared.types import ModelName, NodeId, Role
from tests import gguf_files
from tests.services.inference.models import fake_hub, ranged_server
from tests.services.inference.models.fake_hub import FakeHub
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import IdleService, RunningNode, until

NAME = ModelName("llama3@1")
COUNT = 24
MODEL = ranged_server.model_bytes(COUNT * BLOCK_BYTES - 5)
DIGEST = manifest.digest_of(MODEL)


@dataclass
class Blobs:
    """The mesh's store, shared by all gateways."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    #: Blocks of the model that were read, with repetitions.
    sent: list[int] = field(default_factory=list)
    readers: list[NodeId] = field(default_factory=list)
    is_away: bool = False

    def add(self, data: bytes) -> str:
        self.blobs[manifest.digest_of(data)] = data
        return manifest.digest_of(data)

    def push(self, *files: bytes) -> str:
        found = [
            VersionFile(f"m-{number}.gguf", self.add(data), len(data), self.add(b"".join(block_list.compute([data]))))
            for number, data in enumerate(files or (MODEL,))
        ]
        config = manifest.encode_config(VersionConfig(), found)
        self.add(config)
        return model_copies.VERSION_SOURCE + self.add(manifest.build(config, found))


def part(number: int) -> bytes:
    pairs = {
        "general.architecture": gguf_files.text("llama"),
        "llama.context_length": gguf_files.single("u32", 64),
        "split.count": gguf_files.single("u16", 2),
        "split.no": gguf_files.single("u16", number),
    }
    return gguf_files.joined(gguf_files.file(pairs, [])) + bytes(BLOCK_BYTES)


class Gateway(IdleService):
    role: ClassVar[Role] = Role.GATEWAY
    store: Blobs

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: object, node: Node) -> AsyncIterator["Gateway"]:
        made = cls()
        made.peers = ModelPeers(node.trust, node.directory, lambda _: None)
        yield made

    peers: ModelPeers

    @serves(model_copies.read_blob)
    async def read(self, request: model_copies.ReadBlob, stream: StreamCall[model_copies.BlobPart]) -> Nothing:
        if request.length <= BLOCK_BYTES:
            if self.store.is_away:
                raise errors.Unavailable("the store is away")
            self.store.sent.append(request.start // BLOCK_BYTES)
            self.store.readers.append(stream.caller.node)
        data = self.store.blobs[request.digest][request.start : request.start + request.length]
        for at in range(0, len(data), model_copies.PART_BYTES):
            await stream.send(model_copies.BlobPart(data[at : at + model_copies.PART_BYTES]))
        return Nothing()

    @serves(model_copies.find_model_peers)
    async def find(self, request: model_copies.FindModelPeers, call: RpcCall) -> model_copies.ModelPeers:
        return model_copies.ModelPeers(self.peers.find(call.caller.node, request.digest, request.model))

    @serves(model_copies.advise_pull)
    async def advise(self, request: model_copies.AdvisePull, call: RpcCall) -> model_copies.PullAdvice:
        return self.peers.advise(call.caller.node, request)

    @serves(model_copies.lease_blocks)
    async def lease(self, request: model_copies.LeaseBlocks, call: RpcCall) -> model_copies.LeasedBlocks:
        return self.peers.lease(call.caller.node, request)


@dataclass
class Worker:
    running: RunningNode
    store: ModelStore
    exchange: Exchange

    @property
    def node(self) -> Node:
        return self.running.node

    async def get(self, source: str) -> None:
        await VersionCopy(self.node.rpc, self.node.directory, self.store, self.exchange).get(NAME, source, Assignment())
        (model,) = self.store.models()
        assert model.parts > 1 or self.store.file(model).read_bytes() == MODEL
        self.node.offer(models=(ModelOffer(NAME, 2048, "" if model.parts > 1 else model.digest),))

    async def pull(self, hub: FakeHub, body: bytes = MODEL) -> None:
        """Get a model of a public source as the mesh orders it."""
        settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), model_store=self.store._root, hub_url=hub.url)
        order = EnsureModel(ModelName("public"), "hf:org/public", Assignment())
        pulls = ModelPulls(settings, lambda: True, self.node)
        assert await pulls._get(order) == ""
        (model,) = self.store.models()
        assert (self.store.file(model).read_bytes(), model.assignment) == (body, Assignment())

    def copied(self) -> int:
        """Return how many bytes of the model the worker has, as it tells others."""
        return sum(pull.done_bytes for pull in self.store.pulls())


@dataclass
class Site:
    net: SwarmNet
    folder: Path
    blobs: Blobs
    gateways: list[RunningNode] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    async def knows(self, holder: Worker) -> None:
        """Wait until all gateways have heard that a worker has the model."""

        def announced(gateway: RunningNode) -> bool:
            entry = gateway.node.directory.find(holder.node.id)
            return entry is not None and bool(entry.announcement.models)

        await until(lambda: all(map(announced, self.gateways)))

    async def add_gateway(self) -> RunningNode:
        self.gateways.append(await self.net.start(type("Gateway", (Gateway,), {"store": self.blobs})))
        return self.gateways[-1]

    async def add_worker(self, *, shares: bool = True, rate: float | None = None) -> Worker:
        running = await self.net.start(IdleService)
        swarm = running.node.node_transports.swarm
        assert swarm is not None
        worker = Worker(running, ModelStore(self.folder / f"w{len(self.workers)}"), Exchange(swarm.copies, shares=shares))
        swarm.copies.set_rate(rate)
        ModelShare(swarm.copies, running.node.trust, partial(worker.exchange.find_whole, worker.store), shares=shares)
        await until(lambda: len(running.node.directory.usable(Role.GATEWAY)) == len(self.gateways), seconds=30)
        await until(lambda: all(gateway.node.directory.find(running.node.id) is not None for gateway in self.gateways), seconds=30)
        self.workers.append(worker)
        return worker


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with swarmnet() as net:
        made = Site(net, tmp_path, Blobs())
        await made.add_gateway()
        yield made


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub.serving() as served:
        served.add_repository("org/public", {"m-Q4_0.gguf": MODEL})
        yield served


def downloads(hub: FakeHub) -> int:
    return sum("/resolve/" in path for path in hub.paths())


async def together(calls: list[Awaitable[None]]) -> None:
    async with asyncio.timeout(120):
        await asyncio.gather(*calls)


async def test_three_workers_take_one_copy_from_the_store(site: Site) -> None:
    source = site.blobs.push()
    await site.add_gateway()
    workers = [await site.add_worker() for _ in range(3)]
    await together([worker.get(source) for worker in workers])
    assert sorted(site.blobs.sent) == list(range(COUNT))
    # Much later, somebody who has it gives all of it.
    await site.knows(workers[0])
    await together([(await site.add_worker()).get(source)])
    assert len(site.blobs.sent) == COUNT


async def test_a_model_in_parts_is_copied_from_who_has_it(site: Site) -> None:
    source = site.blobs.push(part(0), part(1))
    holder, reader = await site.add_worker(), await site.add_worker()
    await together([holder.get(source)])
    await site.knows(holder)
    await together([reader.get(source)])
    assert len(site.blobs.sent) == 4
    (model,) = reader.store.models()
    assert reader.store.find_file(model.part_digests[1]) == reader.store.file(model).with_name("model-00002-of-00002.gguf")


async def test_a_copy_ends_from_other_workers_when_the_store_and_all_gateways_go_away(site: Site) -> None:
    source = site.blobs.push()
    first = await site.add_worker(rate=16 * BLOCK_BYTES)
    await together([first.get(source)])
    second = await site.add_worker()
    copying = asyncio.create_task(second.get(source))
    await until(lambda: second.copied() >= len(MODEL) // 4, seconds=30)
    site.blobs.is_away = True
    await site.gateways[0].stop()
    await together([copying])
    assert len(site.blobs.sent) == COUNT


async def test_a_worker_that_leaves_amid_the_copy_costs_its_blocks_at_most(site: Site) -> None:
    source = site.blobs.push()
    leaver, *others = [await site.add_worker(rate=8 * BLOCK_BYTES) for _ in range(3)]
    leaving = asyncio.create_task(leaver.get(source))
    copying = [asyncio.create_task(each.get(source)) for each in others]
    await until(lambda: leaver.copied() >= len(MODEL) // 2, seconds=30)
    leaving.cancel()
    await leaver.running.cut()
    await together(list(copying))
    assert set(site.blobs.sent) == set(range(COUNT))
    assert len(site.blobs.sent) <= COUNT + site.blobs.readers.count(leaver.node.id)


async def test_a_worker_that_does_not_share_reads_from_others_and_is_not_read_from(site: Site) -> None:
    source = site.blobs.push()
    sharing, silent = await site.add_worker(), await site.add_worker(shares=False)
    await together([sharing.get(source)])
    await together([silent.get(source)])
    assert len(site.blobs.sent) == COUNT
    await sharing.running.stop()
    third = await site.add_worker()
    await together([third.get(source)])
    assert site.blobs.readers.count(third.node.id) == COUNT


async def test_one_worker_pulls_a_public_model_and_the_others_copy_it(site: Site, hub: FakeHub) -> None:
    workers = [await site.add_worker() for _ in range(3)]
    await together([worker.pull(hub) for worker in workers])
    assert downloads(hub) == 1
    await workers[0].running.stop()
    await together([(await site.add_worker()).pull(hub)])
    assert downloads(hub) == 1
    for worker in workers:
        assert list((worker.store._root / "partial").iterdir()) == []


@pytest.mark.parametrize("has_other_bytes", [True, False])
async def test_a_lie_about_a_public_model_costs_only_time(
    site: Site, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, *, has_other_bytes: bool
) -> None:
    monkeypatch.setattr(pulled_copy, "STALL_SECONDS", 5.0 if has_other_bytes else 0.5)
    liar, worker = await site.add_worker(), await site.add_worker()
    store, other = liar.store, bytes(len(MODEL))
    store.ensure_folders()
    lie = StoredModel(name=ModelName("public"), digest="0" * 64, size=len(other), source="", stored_at=datetime.now(UTC), source_key="")
    store.blob(lie.digest).write_bytes(other)
    copy = PulledCopy(liar.node.rpc, liar.node.directory, store, liar.exchange)
    file = msgspec.structs.replace(copy._list(lie), digest=DIGEST)
    if has_other_bytes:
        store.blob(DIGEST.removeprefix("sha256:")).write_bytes(other)
    await copy._ask(lie.name, AdvisePull(lie.name, "hf:org/public", file))
    await together([worker.pull(hub)])
    assert downloads(hub) == 1


async def test_a_public_model_in_parts_is_pulled_by_each(site: Site, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_copy, "WAIT_SECONDS", 0.1)
    hub.add_repository("org/public", {f"m-Q4_0-0000{number + 1}-of-00002.gguf": part(number) for number in range(2)})
    await together([(await site.add_worker()).pull(hub, part(0)), (await site.add_worker()).pull(hub, part(0))])
    assert downloads(hub) == 4


async def test_who_pulls_a_public_model_and_dies_is_replaced(site: Site, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_copy, "WAIT_SECONDS", 0.1)
    dying, worker = await site.add_worker(), await site.add_worker()
    copy = PulledCopy(dying.node.rpc, dying.node.directory, dying.store, dying.exchange)
    assert await copy.get(ModelName("public"), "hf:org/public") is None
    waiting = asyncio.create_task(worker.pull(hub))
    await dying.running.cut()
    await together([waiting])
    assert downloads(hub) == 1
