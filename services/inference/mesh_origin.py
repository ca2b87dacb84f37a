"""The mesh's store as the origin of a copy, and the gateway that leases its blocks and introduces other workers."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from services.inference.models.model_copy import CopyPeer
from shared import errors
from shared.api import model_copies
from shared.api.method import Method, Reply, Request
from shared.api.model_copies import FindModelPeers, LeaseBlocks
from shared.identity import node_keys
from shared.models import block_list
from shared.models.block_list import BLOCK_BYTES
from shared.models.manifest import VersionFile
from shared.protocol.directory import Directory
from shared.rpc import RpcClient
from shared.types import ModelName, NodeId, Role

#: Reads a range of a blob: digest, start, length.
ReadRange = Callable[[str, int, int], Awaitable[bytes]]


@dataclass
class MeshOrigin:
    """Of one file. Implements ``Origin``."""

    rpc: RpcClient
    nodes: Directory
    read_range: ReadRange
    file: VersionFile
    #: What workers call the version that the file is a part of.
    model: ModelName
    _faulty: set[NodeId] = field(default_factory=set)
    _failures: int = 0

    async def lease(self, done: Sequence[int], orphans: Sequence[int], most: int, have: int) -> Sequence[int]:
        faulty = tuple(self._faulty)[:16]
        request = LeaseBlocks(self.file.digest, self.file.size, tuple(done), tuple(orphans), most, faulty=faulty, model=self.model)
        answer = await self.ask(model_copies.lease_blocks, request)
        if answer.is_new:
            had = have.to_bytes((block_list.count(self.file.size) + 7) // 8, "little")
            answer = await self.ask(model_copies.lease_blocks, msgspec.structs.replace(request, had=had))
        self._faulty.difference_update(faulty)
        return answer.blocks

    async def read(self, block: int, size: int) -> bytes:
        return await self.read_range(self.file.digest, block * BLOCK_BYTES, size)

    async def find_peers(self) -> list[CopyPeer]:
        found = await self.ask(model_copies.find_model_peers, FindModelPeers(self.file.digest, self.model))
        return [CopyPeer(node_keys.raw_of(peer.node), peer.grant) for peer in found.peers]

    def report(self, key: bytes, why: str) -> None:
        self._faulty.add(node_keys.node_of(key))

    async def ask(self, method: Method[Request, Reply], request: Request) -> Reply:
        """Ask the gateway that all workers ask about this file; after a failure, the next one."""
        gateways = sorted((entry.node for entry in self.nodes.usable(Role.GATEWAY)), key=self._rank)
        if not gateways:
            raise errors.NotReachable("no gateway is connected")
        try:
            return await self.rpc.call(method, request, to=gateways[self._failures % len(gateways)])
        except errors.AimeshError:
            self._failures += 1
            raise

    def _rank(self, node: NodeId) -> bytes:
        """Sort differently for each file, and equally in all workers."""
        return sha256(f"{self.file.digest} {node}".encode()).digest()
