"""The methods by which workers find each other and share the reading of the mesh's store. See ``model_peers``."""

import time
from collections.abc import Awaitable, Callable

from services.gateway.models.model_peers import ModelPeers
from services.gateway.models.registry_store import RegistryStore
from shared import addresses, errors
from shared.api import model_copies
from shared.node import Node
from shared.rpc import RpcCall, serves
from shared.transports.swarm_link import SwarmLink
from shared.types import ModelName, NodeId

#: A worker asks for each block.
_LOADABLE_SECONDS = 10.0


class ModelPeersRpc:
    def __init__(
        self,
        node: Node,
        store: RegistryStore,
        find_source: Callable[[ModelName], str | None],
        find_size: Callable[[str], Awaitable[int | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``find_source`` returns the source of a deployed model, ``find_size`` the size of a file of a version."""
        self._node, self._store, self._find_source, self._find_size, self._clock = node, store, find_source, find_size, clock
        self._peers = ModelPeers(node.trust, node.directory, self._network_of, on_excluded=node.metrics.excluded_peers.inc)
        #: Digest -> until when it counts as loadable.
        self._loadable: dict[str, float] = {}

    @serves(model_copies.find_model_peers)
    async def find(self, request: model_copies.FindModelPeers, call: RpcCall) -> model_copies.ModelPeers:
        await self._ensure_loadable(request.digest)
        return model_copies.ModelPeers(self._peers.find(call.caller.node, request.digest, request.model))

    @serves(model_copies.lease_blocks)
    async def lease(self, request: model_copies.LeaseBlocks, call: RpcCall) -> model_copies.LeasedBlocks:
        await self._ensure_loadable(request.digest)
        if not self._peers.knows_size(request.digest, request.size) and await self._find_size(request.digest) != request.size:
            raise errors.BadRequest(f"{request.digest} has another size than {request.size} bytes")
        return self._peers.lease(call.caller.node, request)

    @serves(model_copies.advise_pull)
    async def advise(self, request: model_copies.AdvisePull, call: RpcCall) -> model_copies.PullAdvice:
        if self._find_source(request.model) != request.source:
            return model_copies.PullAdvice()
        return self._peers.advise(call.caller.node, request)

    async def _ensure_loadable(self, digest: str) -> None:
        """Raise NotFound for what no version has that may be loaded, and no deployment."""
        now = self._clock()
        if self._loadable.get(digest, now) > now or self._peers.is_pulled(digest):
            return
        if not await self._store.is_loadable(digest):
            raise errors.NotFound(f"no version has {digest}")
        self._loadable = {found: until for found, until in self._loadable.items() if until > now} | {digest: now + _LOADABLE_SECONDS}

    def _network_of(self, node: NodeId) -> str | None:
        """Return the /24 or /64 from which a worker is linked to us over Hyperswarm."""
        swarm = self._node.node_transports.swarm
        link = None if swarm is None else swarm.find(node)
        if not isinstance(link, SwarmLink) or link.path == "relayed":
            return None
        return addresses.local_network(link.connection.remote.host)
