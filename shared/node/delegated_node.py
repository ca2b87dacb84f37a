"""A client that joined with a ticket: over NATS, if its ticket names servers, else on Hyperswarm.

Hyperswarm allows one connection per key, but several processes of one profile may run at once. So each process makes its own key there, and
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
from shared.transports.nats.login import NatsLoginRefused
from shared.transports.nats_link import NatsTransport
from shared.transports.swarm_transport import SwarmTransport
from shared.types import Role


@dataclass(frozen=True, slots=True)
class ProfileOnNats:
    """NATS allows several connections per key, so this is the profile itself."""

    me: LocalNode
    trust: Trust
    nats: NatsTransport
    membership: membership_file.MembershipFile
    state_file: Path
    swarm: None = None

    async def keep(self, nodes: Directory, rpc: RpcClient, node_transports: Transports) -> None:
        """Keep the certificate up to date. Ends by cancellation."""
        renewal = CertificateRenewal(self.trust, self.membership, self.state_file, nodes, rpc)
        renewal.changed = self.nats.renew_login
        node_transports.on_number = renewal.record_list_number
        await renewal.run()


@dataclass(frozen=True, slots=True)
class Delegate:
    me: LocalNode
    trust: Trust
    swarm: SwarmTransport
    profile: node_keys.NodeKey
    membership: membership_file.MembershipFile
    state_file: Path
    nats: None = None

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


async def load(mesh_file: Path, profile: node_keys.NodeKey) -> membership_file.MembershipFile:
    """Return the profile's membership, with a certificate that is valid now. Raises BadSettings if the profile has not joined a mesh, and
    NotCertified if its certificate cannot be renewed."""
    membership = membership_file.load(mesh_file)
    if membership is None:
        raise errors.BadSettings(f"there is no {mesh_file}", hint="run `aicli mesh connect TICKET` to create a profile for this machine")
    trust = Trust(profile, Role.CLIENT)
    membership_file.load_into(trust, membership)
    if not trust.has_certificate(time.time()):
        from shared.node import enrollment  # noqa: PLC0415 - rarely needed

        membership = await enrollment.renew_as_newcomer(membership, profile, lambda text: None)
        membership_file.save(mesh_file, membership)
    return membership


async def over_nats(
    membership: membership_file.MembershipFile, mesh_file: Path, profile: node_keys.NodeKey, software: str, seconds: float
) -> ProfileOnNats | None:
    """Return None if NATS can't be reached, but Hyperswarm may. Raises Unavailable."""
    me, trust = LocalNode(membership.mesh, Role.CLIENT, profile, software), Trust(profile, Role.CLIENT)
    membership_file.load_into(trust, membership)
    nats = NatsTransport(me, ",".join(membership.nats), trust=trust)
    try:
        await nats.connect(deadline_seconds=seconds)
    except errors.Unavailable as error:
        if not membership.beside or isinstance(error, NatsLoginRefused):
            raise
        return None
    return ProfileOnNats(me, trust, nats, membership, mesh_file)


def prepare(
    membership: membership_file.MembershipFile, mesh_file: Path, profile: node_keys.NodeKey, node: Path | None, software: str
) -> Delegate:
    """Return the node of this process on Hyperswarm."""
    own = node_keys.NodeKey(node_keys.new_seed())
    trust = Trust(own, Role.CLIENT)
    membership_file.load_into(trust, membership)
    trust.delegation = certificates.delegate(profile, own.id, time.time())
    me = LocalNode(membership.mesh, Role.CLIENT, own, software)
    known = membership_file.nodes_of(membership, time.time())
    older = membership.older_bootstrap
    open_swarm = swarm_settings.opener(own, membership.bootstrap, membership.relays, node=node, known=known, older=older)
    return Delegate(me, trust, SwarmTransport(me, trust, open_swarm), profile, membership, mesh_file)
