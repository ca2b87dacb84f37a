"""A client on Hyperswarm: each process has its own key, delegated by the profile's certified key.

Hyperswarm allows one connection per key, but several processes of one profile may run at once. So each process makes its own key, and
the profile signs a delegation for it that lasts ten minutes.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from shared import errors
from shared.discovery.directory import Directory
from shared.identity import certificates, node_keys
from shared.identity.trust import Trust
from shared.node import membership_file, swarm_settings
from shared.node.certificate_renewal import CertificateRenewal, DhtNodeCache
from shared.node.transports import Transports
from shared.rpc.calling import RpcClient
from shared.transports.link import LocalNode
from shared.transports.swarm_link.swarm_transport import SwarmTransport
from shared.types import Role


@dataclass(frozen=True, slots=True)
class Delegate:
    me: LocalNode
    trust: Trust
    swarm: SwarmTransport
    profile: node_keys.NodeKey
    kept: membership_file.MembershipFile
    state_file: Path

    async def keep(self, nodes: Directory, rpc: RpcClient, node_transports: Transports) -> None:
        """Keep certificate, delegation and DHT nodes up to date. Ends by cancellation."""
        standing = CertificateRenewal(self.trust, self.kept, self.state_file, nodes, rpc)

        def changed() -> None:
            kept = standing.kept
            self.swarm.begin_with(*swarm_settings.nodes_to_begin_with(kept.bootstrap, kept.older_bootstrap))
            self.swarm.meet(standing.meetings())

        standing.changed = changed
        node_transports.on_number = standing.told
        changed()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(standing.run())
            tasks.create_task(self._delegate_anew())
            tasks.create_task(DhtNodeCache(self.swarm, standing).run())

    async def _delegate_anew(self) -> None:
        while True:
            await asyncio.sleep(certificates.DELEGATION_SECONDS / 2)
            self.trust.delegation = certificates.delegate(self.profile, self.trust.me.id, time.time())


async def prepare(mesh_file: Path, profile: node_keys.NodeKey, node: Path | None, software: str) -> Delegate:
    """Raises BadSettings if the profile has not joined a mesh, and NotCertified if its certificate cannot be renewed."""
    kept = membership_file.load(mesh_file)
    if kept is None:
        raise errors.BadSettings(f"there is no {mesh_file}", hint="aicli mesh connect TICKET makes a profile for this machine")
    own = node_keys.NodeKey(node_keys.new_seed())
    trust = Trust(own, Role.CLIENT)
    membership_file.load_into(trust, kept)
    if not trust.has_certificate(time.time()):
        from shared.node import enrollment  # noqa: PLC0415 - rarely needed

        kept = await enrollment.renew_at_enrollment_topic(kept, profile, lambda text: None)
        membership_file.save(mesh_file, kept)
        membership_file.load_into(trust, kept)
    trust.delegation = certificates.delegate(profile, own.id, time.time())
    me = LocalNode(kept.mesh, Role.CLIENT, own, software)
    known = membership_file.nodes_of(kept, time.time())
    open_swarm = swarm_settings.opener(own, kept.bootstrap, kept.relays, node=node, known=known, older=kept.older_bootstrap)
    return Delegate(me, trust, SwarmTransport(me, trust, open_swarm), profile, kept, mesh_file)
