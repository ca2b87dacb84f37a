"""A real mesh whose workers get models from its store by leases, from a hub, and from each other through their sidecars."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from services.gateway.models.model_peers import ModelPeers
from services.inference.model_pulls import ModelPulls
from services.inference.models.model_copy import ModelShare
from services.inference.models.model_store import ModelStore
from services.inference.settings import InferenceSettings
from services.inference.version_copy import Exchange, VersionCopy
from shared import errors
from shared.api import model_copies
from shared.api.inference import Assignment, EnsureModel
from shared.api.method import Nothing
from shared.models import block_list, manifest
from shared.models.block_list import BLOCK_BYTES
from shared.models.manifest import VersionConfig, VersionFile
from shared.node.member import Node
from shared.protocol.directory import ModelOffer
from shared.rpc import RpcCall, StreamCall, serves
from shared.types import ModelName, NodeId, Role
from tests.services.inference.models import ranged_server
from tests.services.inference.models.fake_hub import FakeHub
from tests.swarmnet import SwarmNet
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
        return model_copies.ModelPeers(
            self.peers.find(call.caller.node, request.digest, request.model, is_version=request.digest in self.store.blobs)
        )

    @serves(model_copies.advise_pull)
    async def advise(self, request: model_copies.AdvisePull, call: RpcCall) -> model_copies.PullAdvice:
        return self.peers.advise(call.caller.node, request)

    @serves(model_copies.lease_blocks)
    async def lease(self, request: model_copies.LeaseBlocks, call: RpcCall) -> model_copies.LeasedBlocks:
        return self.peers.lease(call.caller.node, request, is_version=request.digest in self.store.blobs)


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
        await self.order(hub)
        (model,) = self.store.models()
        assert (self.store.file(model).read_bytes(), model.assignment) == (body, Assignment())

    async def order(self, hub: FakeHub) -> None:
        """Get a model of a public source as the mesh orders it."""
        settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), model_store=self.store._root, hub_url=hub.url)
        order = EnsureModel(ModelName("public"), "hf:org/public", Assignment())
        pulls = ModelPulls(settings, lambda: True, self.node)
        assert await pulls._get(order) == ""

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
        copies = running.node.copies
        worker = Worker(running, ModelStore(self.folder / f"w{len(self.workers)}"), Exchange(copies, shares=shares))
        copies.set_rate(rate)
        ModelShare(copies, running.node.trust, partial(worker.exchange.find_whole, worker.store), shares=shares)
        await until(lambda: len(running.node.directory.usable(Role.GATEWAY)) == len(self.gateways), seconds=30)
        await until(lambda: all(gateway.node.directory.find(running.node.id) is not None for gateway in self.gateways), seconds=30)
        self.workers.append(worker)
        return worker


async def together(calls: list[Awaitable[None]]) -> None:
    async with asyncio.timeout(120):
        await asyncio.gather(*calls)
