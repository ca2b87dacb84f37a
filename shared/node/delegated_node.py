"""A client on Hyperswarm: each process has its own key, delegated by the profile's certified key.

Hyperswarm allows one connection per key, but several processes of one profile may run at once. So each process makes its own key, and
the profile signs a delegation for it that lasts ten minutes.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.trust import Trust
from shared.node import membership_file, swarm_settings
from shared.node.certificate_renewal import CertificateRenewal, save_dht_nodes
from shared.node.transports import Transports
from shared.protocol.directory import Directory
from shared.rpc.calling import RpcClient
from shared.transports.link import LocalNode
from shared.transports.swarm_transport import SwarmTransport
from shared.types import Role


@dataclass(frozen=True, slots=True)
class Delegate:
    me: LocalNode
    trust: Trust
    swarm: SwarmTransport
    profile: node_keys.NodeKey
    membership: membership_file.MembershipFile
    state_file: Path

    async def keep(self, nodes: Directory, rpc: RpcClient, node_transports: Transports) -> None:
        """Keep certificate, delegation and DHT nodes up to date. Ends by cancellation."""
        renewal = CertificateRenewal(self.trust, self.membership, self.state_file, nodes, rpc)

        def changed() -> None:
            membership = renewal.membership
            self.swarm.set_initial_nodes(*swarm_settings.initial_nodes(membership.bootstrap, membership.older_bootstrap))
            self.swarm.meet(renewal.meetings())

        renewal.changed = changed
        node_transports.on_number = renewal.record_list_number
        changed()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(renewal.run())
            tasks.create_task(self._renew_delegation())
            tasks.create_task(save_dht_nodes(self.swarm, renewal))

    async def _renew_delegation(self) -> None:
        while True:
            await asyncio.sleep(certificates.DELEGATION_SECONDS / 2)
            self.trust.delegation = certificates.delegate(self.profile, self.trust.me.id, time.time())


async def prepare(mesh_file: Path, profile: node_keys.NodeKey, node: Path | None, software: str) -> Delegate:
    """Raises BadSettings if the profile has not joined a mesh, and NotCertified if its certificate cannot be renewed."""
    membership = membership_file.load(mesh_file)
    if membership is None:
        raise errors.BadSettings(f"there is no {mesh_file}", hint="run `aicli mesh connect TICKET` to create a profile for this machine")
    own = node_keys.NodeKey(node_keys.new_seed())
    trust = Trust(own, Role.CLIENT)
    membership_file.load_into(trust, membership)
    if not trust.has_certificate(time.time()):
        from shared.node import enrollment  # noqa: PLC0415 - rarely needed

        membership = await enrollment.renew_as_newcomer(membership, profile, lambda text: None)
        membership_file.save(mesh_file, membership)
        membership_file.load_into(trust, membership)
    trust.delegation = certificates.delegate(profile, own.id, time.time())
    me = LocalNode(membership.mesh, Role.CLIENT, own, software)
    known = membership_file.nodes_of(membership, time.time())
    older = membership.older_bootstrap
    open_swarm = swarm_settings.opener(own, membership.bootstrap, membership.relays, node=node, known=known, older=older)
    return Delegate(me, trust, SwarmTransport(me, trust, open_swarm), profile, membership, mesh_file)
