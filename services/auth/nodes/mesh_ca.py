"""Run the mesh CA: sign certificates and the revocation list, and keep auth's own certificate valid.

The list is signed as soon as PostgreSQL announces a change, and every CONFIRM_SECONDS, so that nodes can tell an outdated list from a
current one. All replicas sign the same list and share no other state.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from services.auth.nodes import enrollment_rules, node_store
from services.auth.nodes.ca_keys import CaKeys
from services.auth.nodes.enrollment_rules import KnownNode
from services.auth.nodes.node_store import NodeStore
from services.auth.settings import AuthSettings
from shared import addresses, errors
from shared.api.membership import Membership, TopicSecret
from shared.identity import certificates, node_keys
from shared.node import Node, lifecycle
from shared.node.swarm_settings import keys_of
from shared.telemetry import logs
from shared.types import Role

#: Nodes ask every 30 s and report a list of ten minutes as outdated.
CONFIRM_SECONDS = 100
#: A place whose node was not heard for a minute is free.
_HEAR_SECONDS = 20
#: Auth renews its own certificate when this share of its lifetime is left.
_RENEW_AT_REST = 1 / 3
_PUBLIC_DHT = ("public",)

_log = logs.get(part="mesh-ca")


@dataclass(frozen=True, slots=True)
class MeshAddresses:
    """How nodes find the mesh; no DHT addresses mean the public DHT."""

    swarm_is_on: bool
    #: For nodes of the operator, and for all others.
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    #: Raw keys of blind relays.
    relays: tuple[bytes, ...]
    #: The NATS servers that tickets name; none if nodes join over Hyperswarm.
    nats: tuple[str, ...]

    @property
    def swarm_is_met_outside(self) -> bool:
        """Return whether other machines may find the mesh over Hyperswarm."""
        hosts = list(map(addresses.host_of_node, self.outside))
        return self.swarm_is_on and not (hosts and all(map(addresses.is_loopback, hosts)))


class MeshCa:
    """Call ``begin`` once, then run ``run`` as a task. ``refresh`` may be called at any time."""

    def __init__(
        self, keys: CaKeys, addresses: MeshAddresses, node: Node, members: NodeStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.keys = keys
        self.addresses = addresses
        self._node = node
        self._members = members
        self._clock = clock
        self._topics: tuple[TopicSecret, ...] = ()
        #: One at a time, so that no older state replaces a newer one.
        self._refresh_lock = asyncio.Lock()

    @classmethod
    def load(cls, settings: AuthSettings, node: Node, members: NodeStore) -> "MeshCa | None":
        """Return None if the settings name no key. Raises BadSettings."""
        if settings.mesh_ca_key_file is None:
            return None
        current = node_keys.load_authority(settings.mesh_ca_key_file)
        next_key = None if settings.mesh_ca_next_key_file is None else node_keys.load_authority(settings.mesh_ca_next_key_file)
        return cls(CaKeys(current, next_key), _addresses(settings), node, members)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    async def begin(self) -> None:
        """Sign the first list and auth's own certificate. Raises NodeRevoked if this node was revoked."""
        # auth trusts its own key file rather than what it stored earlier.
        self._node.trust.authorities = self.keys.authorities
        # A restored database has a lower number than nodes have seen, and they would ignore its list.
        await self._members.raise_number(self._node.trust.number)
        await self._refresh(renew=True)

    async def run(self) -> None:
        """Run until canceled. Raises NodeRevoked if auth's own certificate cannot be renewed because it was revoked."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._members.listen(node_store.CHANGES, lambda _payload: self.refresh()))
            tasks.create_task(lifecycle.every(CONFIRM_SECONDS, self._confirm))
            tasks.create_task(lifecycle.every(_HEAR_SECONDS, self._note_heard))

    async def refresh(self) -> None:
        """Sign the current list, and renew auth's certificate when it is due."""
        await self._refresh(renew=False)

    async def certify(self, node: KnownNode) -> bytes:
        """Raises what ``enrollment_rules.check_may_stay`` raises if the node has just lost its permission."""
        now = self._clock()
        until = datetime.fromtimestamp(now + certificates.lifetime_seconds(node.role), UTC)
        if not await self._members.note_certified(node.id, until):
            enrollment_rules.check_may_stay(await self._members.find_node(node.id), self.now())
            raise errors.Unavailable("the node was just changed", hint="try again", retry_after_seconds=1)
        return self.keys.certify(enrollment_rules.subject_of(node), now)

    def membership(self, node: KnownNode, certificate: bytes, *, outside: bool) -> Membership:
        """Return all that a certified node needs. ``outside``: it may be anywhere."""
        return Membership(
            mesh=self._node.mesh,
            role=node.role,
            certificate=certificate,
            revocations=self._node.trust.list_body,
            authorities=self.keys.authorities,
            succession=self.keys.succession,
            topics=self._topics,
            bootstrap=self.addresses.outside if outside else self.addresses.inside,
            relays=self.addresses.relays,
            now_ms=int(self._clock() * 1000),
        )

    async def _refresh(self, *, renew: bool) -> None:
        async with self._refresh_lock:
            now = self._clock()
            state = await self._members.read_state(self.now())
            # First, so that nothing below can delay a revocation.
            self._node.renewal.take_list(self.keys.sign_list(state, now))
            self._topics = self.keys.topics(state, now)
            is_new = tuple((secret.epoch, secret.secret) for secret in self._topics) != self._node.trust.topics
            if renew or is_new or self._is_renewal_due(now):
                await self._renew()
                _log.info("own certificate renewed", epoch=state.epoch, list_number=state.number)

    async def _renew(self) -> None:
        await self._members.ensure_vouched(self._node.id, Role.AUTH)
        me = enrollment_rules.check_may_stay(await self._members.find_node(self._node.id), self.now())
        self._node.renewal.take(self.membership(me, await self.certify(me), outside=False))

    def _is_renewal_due(self, now: float) -> bool:
        found = self._node.trust.standing()
        if found is None or not self._node.trust.has_certificate(now):
            return True
        return found.not_after - now < _RENEW_AT_REST * certificates.lifetime_seconds(Role.AUTH)

    async def _note_heard(self) -> None:
        """Record which nodes are there, for the places of their tickets."""
        await self._members.note_heard([entry.node for entry in self._node.directory.entries() if entry.alive])

    async def _confirm(self) -> None:
        """After ten minutes without it, every node reports an outdated list."""
        await self._members.rotate_epoch()
        await self._members.forget_left_nodes()
        await self.refresh()


def _addresses(settings: AuthSettings) -> MeshAddresses:
    inside = () if settings.dht_bootstrap == _PUBLIC_DHT else settings.dht_bootstrap
    return MeshAddresses(
        bool(settings.dht_bootstrap),
        inside,
        settings.ticket_bootstrap or inside,
        keys_of("DHT_RELAYS", settings.dht_relays),
        _nats_for_tickets(settings),
    )


def _nats_for_tickets(settings: AuthSettings) -> tuple[str, ...]:
    urls = settings.public_nats_url
    if urls is None and settings.uses_nats and not settings.dht_bootstrap:
        # A ticket must not contain the password of NATS_URL.
        urls = None if addresses.has_credentials(settings.nats_url) else settings.nats_url
    return () if urls is None else tuple(urls.split(","))
