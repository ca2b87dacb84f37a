"""The mesh CA at work: signs certificates and the revocation list, and keeps auth's own node in good standing by them.

The list is signed anew at once when PostgreSQL says that it changed, and every CONFIRM_SECONDS, so that nodes can tell an old
list from one that still holds. Replicas sign the same list; none of them keeps anything that another would have to know.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from services.auth.nodes import enrollment_rules
from services.auth.nodes.ca_keys import CaKeys
from services.auth.nodes.enrollment_rules import KnownNode
from services.auth.nodes.node_store import NodeStore
from services.auth.settings import AuthSettings
from shared import errors
from shared.api.membership import Membership, TopicSecret
from shared.identity import certificates, node_keys
from shared.node import Node, lifecycle
from shared.node.swarm_settings import keys_of
from shared.telemetry import logs
from shared.types import Role

#: The list says so often that it still holds. Nodes ask every 30 s, and show one of ten minutes as old.
CONFIRM_SECONDS = 100
_RETRY_SECONDS = 1
#: Auth renews its own certificate when so much of its life is left.
_RENEW_AT_REST = 1 / 3
_PUBLIC_DHT = ("public",)

_log = logs.get(part="mesh-ca")


@dataclass(frozen=True, slots=True)
class SwarmMeeting:
    """How nodes find the DHT; no addresses mean the public one."""

    #: Whether this auth is on Hyperswarm at all.
    is_on: bool
    #: For nodes of the house, and for those who come from elsewhere.
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    #: Raw keys of blind relays.
    relays: tuple[bytes, ...]


class MeshCa:
    """``begin`` once, then ``run`` is the task. ``refresh`` may be called at any time beside it."""

    def __init__(
        self, keys: CaKeys, meeting: SwarmMeeting, node: Node, members: NodeStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.keys = keys
        self.meeting = meeting
        self._node = node
        self._members = members
        self._clock = clock
        self._topics: tuple[TopicSecret, ...] = ()
        #: One refresh at a time, so that none puts an older state in the place of a newer one.
        self._refreshing = asyncio.Lock()

    @classmethod
    def load(cls, settings: AuthSettings, node: Node, members: NodeStore) -> "MeshCa | None":
        """None where the settings name no key. Raises BadSettings."""
        if settings.mesh_ca_key_file is None:
            return None
        current = node_keys.load_authority(settings.mesh_ca_key_file)
        following = None if settings.mesh_ca_next_key_file is None else node_keys.load_authority(settings.mesh_ca_next_key_file)
        return cls(CaKeys(current, following), _meeting(settings), node, members)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    async def begin(self) -> None:
        """The first list and auth's own certificate. Raises NodeRevoked if this very node was cut off."""
        # Auth believes its own key file, whatever it may have kept on disk under another one.
        self._node.trust.authorities = self.keys.authorities
        # A database that was restored knows less than what it gave out: nodes would not believe its list.
        await self._members.raise_number(self._node.trust.number)
        await self._refresh(renew=True)

    async def run(self) -> None:
        """Ends by cancellation. Raises NodeRevoked when auth's own certificate cannot be renewed for that reason."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(lifecycle.every(CONFIRM_SECONDS, self._confirm))

    async def refresh(self) -> None:
        """Sign the list as it is now, and renew our own certificate if it is time."""
        await self._refresh(renew=False)

    async def certify(self, node: KnownNode) -> bytes:
        """A certificate for a node that may have one. Raises what ``enrollment_rules.check_may_stay`` does if it has just lost that."""
        now = self._clock()
        until = datetime.fromtimestamp(now + certificates.lifetime_seconds(node.role), UTC)
        if not await self._members.note_certified(node.id, until):
            enrollment_rules.check_may_stay(await self._members.find_node(node.id), self.now())
            raise errors.Unavailable("the node was being changed at this moment", hint="try again", retry_after_seconds=1)
        return self.keys.certify(enrollment_rules.subject_of(node), now)

    def membership(self, node: KnownNode, certificate: bytes, *, outside: bool) -> Membership:
        """All that a certified node has to know. ``outside``: it came over Hyperswarm, not over NATS."""
        return Membership(
            mesh=self._node.mesh,
            role=node.role,
            certificate=certificate,
            revocations=self._node.trust.list_body,
            authorities=self.keys.authorities,
            succession=self.keys.succession,
            topics=self._topics,
            bootstrap=self.meeting.outside if outside else self.meeting.inside,
            relays=self.meeting.relays,
            now_ms=int(self._clock() * 1000),
        )

    async def _refresh(self, *, renew: bool) -> None:
        async with self._refreshing:
            now = self._clock()
            state = await self._members.read_state(self.now())
            # First of all, so that nothing below can hold a revocation up.
            self._node.standing.take_list(self.keys.sign_list(state, now))
            self._topics = self.keys.topics(state, now)
            is_new = tuple((secret.epoch, secret.secret) for secret in self._topics) != self._node.trust.topics
            if renew or is_new or self._is_renewal_due(now):
                await self._renew()
                _log.info("own certificate renewed", epoch=state.epoch, list_number=state.number)

    async def _renew(self) -> None:
        await self._members.ensure_vouched(self._node.id, Role.AUTH)
        me = enrollment_rules.check_may_stay(await self._members.find_node(self._node.id), self.now())
        self._node.standing.take(self.membership(me, await self.certify(me), outside=False))

    def _is_renewal_due(self, now: float) -> bool:
        found = self._node.trust.standing()
        if found is None or not self._node.trust.has_certificate(now):
            return True
        return found.not_after - now < _RENEW_AT_REST * certificates.lifetime_seconds(Role.AUTH)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(errors.Unavailable):
                async with contextlib.aclosing(self._members.follow()) as changes:
                    async for _ in changes:
                        await self.refresh()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _confirm(self) -> None:
        """Ten minutes without it show as an old list on every node."""
        await self._members.rotate_epoch()
        await self.refresh()


def _meeting(settings: AuthSettings) -> SwarmMeeting:
    inside = () if settings.dht_bootstrap == _PUBLIC_DHT else settings.dht_bootstrap
    return SwarmMeeting(
        bool(settings.dht_bootstrap), inside, settings.ticket_bootstrap or inside, keys_of("DHT_RELAYS", settings.dht_relays)
    )
