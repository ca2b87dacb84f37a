"""The methods by which workers find each other and share the reading of the mesh's store. See ``model_peers``."""

from collections.abc import Awaitable, Callable

from services.gateway.models import model_readers
from services.gateway.models.model_peers import ModelPeers
from services.gateway.models.model_readers import ModelReaders
from shared import addresses, errors
from shared.api import model_copies
from shared.node import Node
from shared.rpc import RpcCall, serves
from shared.transports.swarm_link import SwarmLink
from shared.types import ModelName, NodeId


class ModelPeersRpc:
    def __init__(
        self,
        node: Node,
        readers: ModelReaders,
        find_source: Callable[[ModelName], str | None],
        find_size: Callable[[str], Awaitable[int | None]],
    ) -> None:
        """``find_source`` returns the source of a deployed model, ``find_size`` the size of a file of a version."""
        self._node, self._readers, self._find_source, self._find_size = node, readers, find_source, find_size
        self._peers = ModelPeers(node.trust, node.directory, self._network_of, on_excluded=node.metrics.excluded_peers.inc)

    @serves(model_copies.find_model_peers)
    async def find(self, request: model_copies.FindModelPeers, call: RpcCall) -> model_copies.ModelPeers:
        is_version = await self._is_version(call.caller.node, request.digest)
        return model_copies.ModelPeers(self._peers.find(call.caller.node, request.digest, request.model, is_version=is_version))

    @serves(model_copies.lease_blocks)
    async def lease(self, request: model_copies.LeaseBlocks, call: RpcCall) -> model_copies.LeasedBlocks:
        is_version = await self._is_version(call.caller.node, request.digest)
        if not self._peers.knows_size(request.digest, request.size) and await self._find_size(request.digest) != request.size:
            raise errors.BadRequest(f"{request.digest} has another size than {request.size} bytes")
        return self._peers.lease(call.caller.node, request, is_version=is_version)

    @serves(model_copies.advise_pull)
    async def advise(self, request: model_copies.AdvisePull, call: RpcCall) -> model_copies.PullAdvice:
        if self._find_source(request.model) != request.source:
            return model_copies.PullAdvice()
        return self._peers.advise(call.caller.node, request)

    async def _is_version(self, node: NodeId, digest: str) -> bool:
        """Return whether a version has the file, and not only workers that pull deployed models from public sources. Raises NotFound for
        what neither has, and for what the machine may not read: a worker may lie about what it has pulled."""
        is_version = await self._readers.is_readable(node, digest)
        if not is_version and not self._peers.is_pulled(digest):
            raise model_readers.unreadable(digest)
        return is_version

    def _network_of(self, node: NodeId) -> str | None:
        """Return the /24 or /64 from which a worker is linked to us over Hyperswarm."""
        swarm = self._node.node_transports.swarm
        link = None if swarm is None else swarm.find(node)
        if not isinstance(link, SwarmLink) or link.path == "relayed":
            return None
        return addresses.local_network(link.connection.remote.host)
