"""Decides which versions of models a machine may read, for all methods that tell workers about them.

The operator's machines read all versions. Others read those of the mesh, those of tenants in which their owner may read models, and those
that the mesh has ordered there. For the rest, the answer is that there is no such version.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from services.gateway.models.registry_store import ModelReader, RegistryStore
from shared import errors
from shared.api import membership
from shared.api.model_trust import VersionTrust
from shared.rpc import RpcClient
from shared.types import ModelName, NodeId

#: How long an answer counts: a worker asks for each block.
KEPT_SECONDS = 10.0
#: Of machines with their owners' rights, and of files with their readers. The oldest go first.
MAX_MACHINES, MAX_FILES = 4096, 16_384
_ASK_SECONDS = 5.0


class ModelReaders:
    def __init__(self, store: RegistryStore, rpc: RpcClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._rpc, self._clock = store, rpc, clock
        #: With the time until which they count.
        self._machines: OrderedDict[NodeId, tuple[float, ModelReader]] = OrderedDict()
        self._files: OrderedDict[tuple[NodeId, str], float] = OrderedDict()

    async def is_readable(self, node: NodeId, digest: str) -> bool:
        """Return whether this is a file of a version, or describes one; False: no version has it. Raises NotFound for what the machine may
        not read, or nobody any more."""
        now = self._clock()
        if self._files.get((node, digest), now) > now:
            return True
        found = await self._store.may_read(ModelReader(node), digest)
        if found is False:
            found = await self._store.may_read(await self._reader(node), digest)
        if found is False:
            raise unreadable(digest)
        if found:
            self._files[node, digest] = now + KEPT_SECONDS
            if len(self._files) > MAX_FILES:
                self._files.popitem(last=False)
        return bool(found)

    async def list_trust(self, node: NodeId, versions: Sequence[ModelName]) -> dict[ModelName, VersionTrust]:
        """Return what is known of those versions that the machine may read."""
        found = await self._store.list_signatures(ModelReader(node), versions)
        if len(found) == len(set(versions)):
            return found
        return await self._store.list_signatures(await self._reader(node), versions)

    async def _reader(self, node: NodeId) -> ModelReader:
        """Ask auth whose models the machine's owner may read."""
        now = self._clock()
        until, reader = self._machines.pop(node, (now, ModelReader(node)))
        if until <= now:
            try:
                asked = membership.DescribeMachine(node)
                machine = await self._rpc.call(membership.describe_machine, asked, deadline_seconds=_ASK_SECONDS)
            except errors.UnknownMethod:
                # An auth of the previous release.
                machine = membership.Machine()
            until, reader = now + KEPT_SECONDS, ModelReader(node, None if machine.reads_all else machine.tenants)
        self._machines[node] = until, reader
        if len(self._machines) > MAX_MACHINES:
            self._machines.popitem(last=False)
        return reader


def unreadable(digest: str) -> errors.NotFound:
    return errors.NotFound(f"no version has {digest}")
