"""Keeps out gateways that are too old to read the configuration: they don't know whom it restricts.

Gateways announce the oldest release that can read the current documents (``ConfigReading``). Auth keeps it in PostgreSQL, because the last
gateway that knows may be stopped before an older one starts. Auth answers an older gateway nothing, lets the others forget their callers
once, so that the older one does, too, and ends its connections to NATS. Where auth doesn't decide about NATS logins, the first two apply.
"""

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from services.auth.nodes.node_store import NodeStore
from shared import config_releases, errors
from shared.api.auth import Principal
from shared.node import Node, lifecycle
from shared.protocol.directory import Announcement, DirectoryEntry
from shared.rpc import RpcCall
from shared.rpc.serving import AnyMethod, Gate
from shared.telemetry import logs
from shared.types import NodeId, Role

#: Also without a change, for an announcement or a write that was lost.
_LOOK_SECONDS = 5.0

_log = logs.get(part="gateway-releases")


def find_needed(gateways: Iterable[Announcement], known: str) -> str:
    """Return the oldest release whose gateways may answer requests, as the gateway with the newest configuration says; ``known`` if no
    gateway says anything."""
    readings = [gateway.config for gateway in gateways if gateway.config is not None and gateway.config.revision]
    return max(readings, key=lambda reading: (reading.revision, config_releases.order(reading.needs))).needs if readings else known


def refuse_login(name: str, needed: str) -> str:
    """Return why a gateway may not log in at NATS with this connection's name; empty if it may. Release 0.3 writes no release into it."""
    release = name.rpartition(" ")[2]
    if config_releases.is_older(release, needed) and config_releases.is_older(config_releases.OLDEST, needed):
        return f"gateways of releases before {needed} can't read the configuration"
    return ""


class GatewayReleases:
    """Call ``begin`` before the first login, and run ``run`` as a task."""

    def __init__(self, node: Node, members: NodeStore, forget_callers: Callable[[], None]) -> None:
        """``forget_callers`` lets every gateway ask again who its callers are."""
        self._node = node
        self._members = members
        self._forget_callers = forget_callers
        self._changed = asyncio.Event()
        #: Those that were cut, until they are gone.
        self._cut: frozenset[NodeId] = frozenset()
        self.needed = self._stored = config_releases.OLDEST
        #: Ends the connections of nodes.
        self.end_connections: Callable[[frozenset[NodeId]], None] = lambda nodes: None
        node.directory.watch(self._on_node)

    async def begin(self) -> None:
        """Raises Unavailable."""
        self.needed = self._stored = await self._members.read_gateway_release()

    async def run(self) -> None:
        """Run until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lifecycle.every(_LOOK_SECONDS, self._look))
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._look()

    def is_too_old(self, node: NodeId) -> bool:
        """Return whether the node is a running gateway that must not answer requests."""
        entry = self._node.directory.find(node)
        return entry is not None and entry.role is Role.GATEWAY and entry.alive and self._refuses(entry.announcement)

    def check(self, call: RpcCall) -> None:
        """Raise PeerError for a call of a gateway that is too old, and Unavailable for one that hasn't said how old it is."""
        if call.caller_role is not Role.GATEWAY or not config_releases.is_older(config_releases.OLDEST, self.needed):
            return
        entry = self._node.directory.find(call.caller.node)
        if entry is None or not entry.alive:
            raise errors.Unavailable("this gateway has not announced itself yet", hint="try again", retry_after_seconds=1)
        if self._refuses(entry.announcement):
            # Not Unavailable: release 0.3 would go on with the callers that it knows.
            raise errors.PeerError(
                f"this gateway's release, {entry.announcement.reads_release}, can't read the configuration, which needs {self.needed}",
                hint="upgrade it, or see which documents need that: `aicli admin config show`",
            )

    def _refuses(self, gateway: Announcement) -> bool:
        return config_releases.is_older(gateway.reads_release, self.needed)

    def _on_node(self, entry: DirectoryEntry) -> None:
        if entry.role is Role.GATEWAY:
            self._changed.set()

    async def _look(self) -> None:
        running = [entry.announcement for entry in self._node.directory.entries(Role.GATEWAY) if entry.alive]
        if (needed := find_needed(running, self.needed)) != self.needed:
            _log.info("gateways need another release", needed=needed, before=self.needed)
            self.needed = needed
        cut = frozenset(gateway.node for gateway in running if self._refuses(gateway))
        for node in cut - self._cut:
            _log.warning("cut off a gateway whose release can't read the configuration", node_id=node, needed=needed)
        if cut - self._cut:
            self._forget_callers()
            self.end_connections(cut)
        self._cut = cut
        if needed != self._stored:
            try:
                await self._members.write_gateway_release(needed)
                self._stored = needed
            except errors.Unavailable as error:
                _log.warning("the release that gateways need was not written", reason=error.message)


class ReleaseGate:
    """A gate that refuses gateways that are too old before it asks another gate."""

    def __init__(self, releases: GatewayReleases, gate: Gate) -> None:
        self._releases = releases
        self._gate = gate

    async def admit(self, method: AnyMethod, request: msgspec.Struct, caller: RpcCall, /) -> Principal | None:
        self._releases.check(caller)
        return await self._gate.admit(method, request, caller)
