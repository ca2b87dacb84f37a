"""Shows the worker's status on the console and in the status file.

``describe`` and the functions below it are pure; ``ConsoleStatus`` looks once a second, prints changes and writes the status file.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from shared.api import node
from shared.api.inference import SERVED, ModelStatus
from shared.api.node import Reached, WorkerStatus
from shared.identity import private_file
from shared.node import Node
from shared.protocol import directory
from shared.types import MeshName, NodeId, Role

LOOK_SECONDS = 1.0
LOAD_EVERY_SECONDS = 10.0
#: A link sends its first PING within a second.
MEASURE_SECONDS = 2.0
#: The status file is rewritten at least this often, so that its age shows whether the worker lives.
WRITE_EVERY_SECONDS = 5.0
_NAMED = 5

_PATHS = {
    "nats": "over NATS",
    "direct": "direct",
    "punched": "punched through the NAT",
    "web": "over HTTPS",
    "relayed": "through a relay",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """A snapshot of the worker."""

    mesh: MeshName
    #: The DHT or the NATS server answers.
    is_attached: bool
    trouble: str = ""
    gateways: tuple[Reached, ...] = ()
    why_lost: str = ""
    #: Known nodes that can't be reached or refuse us, with the reason.
    unreached: tuple[tuple[NodeId, str], ...] = ()
    models: tuple[ModelStatus, ...] = ()
    is_paused: bool = False
    is_revoked: bool = False
    is_expired: bool = False
    #: For the machine's owner, no problems.
    notices: tuple[str, ...] = ()

    @property
    def ready(self) -> tuple[str, ...]:
        return tuple(status.model_id for status in self.models if status.state in SERVED)

    @property
    def running(self) -> int:
        return sum(status.running for status in self.models if status.parent is None)

    @property
    def queued(self) -> int:
        return sum(status.queued for status in self.models if status.parent is None)


def describe(facts: WorkerFacts) -> list[str]:
    """Describe the worker in full, as `aicli worker status` shows it."""
    load = [_load(facts)] if facts.ready else []
    return [*_standing(facts), *_mesh(facts, was_there=False), *_models(facts), *load, *_pause(facts), *facts.notices]


def describe_changes(before: WorkerFacts, now: WorkerFacts) -> list[str]:
    """Describe what changed since ``before``, without the load, which changes all the time."""
    lines = [line for line in _standing(now) if line not in _standing(before)]
    lines += _mesh_changes(before, now)
    lines += [line for line in _models(now) if line not in _models(before)]
    if now.is_paused != before.is_paused:
        lines += _pause(now) or ["resumed: accepting new requests"]
    lines += [line for line in now.notices if line not in before.notices]
    return lines


def _standing(facts: WorkerFacts) -> Iterator[str]:
    if facts.is_revoked:
        yield "an administrator has revoked this machine; to join again, use a new ticket (aicli worker --join TICKET)"
    elif facts.is_expired:
        yield "the certificate has expired; requesting a new one …"


def _mesh(facts: WorkerFacts, *, was_there: bool) -> list[str]:
    """Name the connected gateways, or say why there are none."""
    if facts.gateways:
        more = len(facts.gateways) - _NAMED
        return [*map(_connected, facts.gateways[:_NAMED]), *([f"and to {more} more"] if more > 0 else [])]
    lost = f"lost the mesh ({facts.why_lost}); reconnecting …" if facts.why_lost else "lost the mesh; reconnecting …"
    looking = lost if was_there else f"looking for the mesh {facts.mesh} …"
    if facts.trouble and not facts.is_attached:
        looking += f" ({facts.trouble})"
    return [looking, *(f"cannot connect to {_short(node)}: {why}" for node, why in facts.unreached[:_NAMED])]


def _mesh_changes(before: WorkerFacts, now: WorkerFacts) -> list[str]:
    if not now.gateways:
        known = _mesh(before, was_there=False)
        return [line for line in _mesh(now, was_there=bool(before.gateways)) if line not in known]
    old = {gateway.node: gateway for gateway in before.gateways}
    lines = []
    for gateway in now.gateways:
        was = old.get(gateway.node)
        if was is None:
            lines.append(_connected(gateway))
        elif was.path != gateway.path:
            lines.append(f"gateway {_short(gateway.node)} is now connected over another path ({_path(gateway)})")
    gone = [node for node in old if node not in {gateway.node for gateway in now.gateways}]
    return lines + [f"gateway {_short(node)} is gone; {len(now.gateways)} left" for node in gone]


def _connected(gateway: Reached) -> str:
    return f"connected to gateway {_short(gateway.node)} ({_path(gateway)})"


def _path(gateway: Reached) -> str:
    words = _PATHS.get(gateway.path, gateway.path)
    return words if gateway.round_trip_ms is None else f"{words}, {gateway.round_trip_ms:.0f} ms"


def _models(facts: WorkerFacts) -> list[str]:
    waiting = [f"{status.model_id}: {status.detail}" for status in facts.models if status.state not in SERVED]
    names = facts.ready
    serving = f"serving {len(names)} model{'s' if len(names) != 1 else ''}: {', '.join(names)}" if names else "serving no model yet"
    return [*waiting, serving]


def _load(facts: WorkerFacts) -> str:
    queued = f", {facts.queued} waiting" if facts.queued else ""
    return f"{facts.running or 'no'} request{'' if facts.running == 1 else 's'} running{queued}"


def _pause(facts: WorkerFacts) -> list[str]:
    return ["paused by its owner: running requests finish, new ones are refused (aicli worker resume)"] if facts.is_paused else []


def _short(node: NodeId) -> str:
    return f"{node[:9]}…"


def read_facts(node: Node, statuses: tuple[ModelStatus, ...], *, notices: tuple[str, ...], is_paused: bool, now: float) -> WorkerFacts:
    standing = node.trust.standing()
    checks = node.node_transports.checks()
    known = node.directory.entries()
    gateways = [entry for entry in known if entry.role is Role.GATEWAY]
    gone = max((entry for entry in gateways if not entry.alive and not entry.refused), key=lambda entry: entry.since, default=None)
    return WorkerFacts(
        mesh=node.mesh,
        is_attached=any(check.ok for check in checks),
        trouble="; ".join(check.detail for check in checks if not check.ok and check.detail),
        gateways=tuple(_reached(node, entry) for entry in gateways if entry.alive),
        why_lost="" if gone is None else gone.why_gone,
        unreached=tuple((entry.node, entry.why_gone) for entry in known if entry.refused and not entry.alive),
        models=statuses,
        is_paused=is_paused,
        is_revoked=node.trust.is_revoked,
        is_expired=standing is not None and standing.not_after < now,
        notices=notices,
    )


def _reached(node: Node, entry: directory.DirectoryEntry) -> Reached:
    seconds = node.node_transports.round_trip_seconds(entry.node)
    return Reached(entry.role, entry.node, entry.path, None if seconds is None else seconds * 1000)


class ConsoleStatus:
    """Prints changes and writes the status file. ``look`` takes a snapshot; without ``write`` nothing is printed."""

    def __init__(
        self, node: NodeId, look: Callable[[], WorkerFacts], write: Callable[[str], None] | None, status_file: Path | None
    ) -> None:
        self._node = node
        self._look = look
        self._write = write
        self._status_file = status_file
        self._reported: WorkerFacts | None = None
        self._reported_load = (0, 0)
        self._load_at = 0.0
        self._seen: dict[NodeId, float] = {}
        self._written: WorkerFacts | None = None
        self._written_at = 0.0

    async def run(self, look_seconds: float = LOOK_SECONDS) -> None:
        while True:
            # Sleep first: at the very start, Hyperswarm for example isn't up yet.
            await asyncio.sleep(look_seconds)
            await self.step(time.monotonic())

    async def step(self, now: float) -> None:
        """Take one snapshot and report it."""
        facts = self._measured(self._look(), now)
        if self._write is not None:
            for line in self._changes(facts, now):
                # A terminal stopped with Ctrl-S blocks the write, and must block nothing else.
                await asyncio.to_thread(self._write, line)
        if self._status_file is not None and (
            self._written is None or _rounded(self._written) != _rounded(facts) or now - self._written_at >= WRITE_EVERY_SECONDS
        ):
            self._written, self._written_at = facts, now
            # A full disk must not stop the worker; the age of the file shows it.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(private_file.replace, self._status_file, node.encode_status(self._status(facts)))

    def _measured(self, facts: WorkerFacts, now: float) -> WorkerFacts:
        """Leave out gateways that connected just now: their round trip is known after the first PONG."""
        self._seen = {gateway.node: self._seen.get(gateway.node, now) for gateway in facts.gateways}
        fresh = {node for node, since in self._seen.items() if now - since < MEASURE_SECONDS}
        return replace(facts, gateways=tuple(each for each in facts.gateways if each.round_trip_ms is not None or each.node not in fresh))

    def _changes(self, facts: WorkerFacts, now: float) -> list[str]:
        load = facts.running, facts.queued
        if self._reported is None:
            lines = [*_mesh(facts, was_there=False), *_standing(facts), *_models(facts), *_pause(facts)]
            self._reported_load = load
        else:
            lines = describe_changes(self._reported, facts)
        self._reported = facts
        if load != self._reported_load and now - self._load_at >= LOAD_EVERY_SECONDS:
            self._reported_load, self._load_at = load, now
            lines.append(_load(facts))
        return lines

    def _status(self, facts: WorkerFacts) -> WorkerStatus:
        return WorkerStatus(
            datetime.now(UTC), facts.mesh, self._node, tuple(describe(facts)), facts.is_paused,
            facts.gateways, facts.ready, facts.running, facts.queued,
        )  # fmt: skip


def _rounded(facts: WorkerFacts) -> WorkerFacts:
    """Leave out the round trips, which change with every PONG."""
    gateways = tuple(Reached(each.role, each.node, each.path, None) for each in facts.gateways)
    return replace(facts, gateways=gateways)
