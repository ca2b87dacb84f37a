"""What a worker tells the person at its machine, in sentences: how it is, and what has changed.

``facts -> sentences`` is pure; ``ConsoleStatus`` looks once a second, prints what is new and keeps the status file true.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from shared.api import worker_status
from shared.api.gateway import Check
from shared.api.inference import SERVED, ModelStatus
from shared.api.worker_status import Reached, WorkerStatus
from shared.discovery import directory
from shared.discovery.directory import Directory
from shared.identity import private_file
from shared.identity.trust import Trust
from shared.types import MeshName, NodeId, Role

LOOK_SECONDS = 1.0
#: How many requests run changes many times a second; nobody reads more often than this.
LOAD_EVERY_SECONDS = 10.0
#: A link's first PING leaves within a second.
MEASURE_SECONDS = 2.0
#: The status file is written anew at least this often, so that its age shows that somebody writes it.
WRITE_EVERY_SECONDS = 5.0
#: More gateways than these are counted and not named.
_NAMED = 5

_PATHS = {
    "nats": "over the house's NATS",
    "direct": "direct",
    "punched": "punched through the NAT",
    "relayed": "through a relay",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What is so at one moment."""

    mesh: MeshName
    #: A way to hear others exists: the DHT or the NATS server answers.
    is_attached: bool
    #: Why it does not, where that is known.
    trouble: str = ""
    gateways: tuple[Reached, ...] = ()
    #: Why the last of them was lost; empty where none was.
    why_lost: str = ""
    #: Nodes that are known and not reached, or not let in: which, and why.
    unreached: tuple[tuple[NodeId, str], ...] = ()
    models: tuple[ModelStatus, ...] = ()
    is_paused: bool = False
    is_revoked: bool = False
    #: Seconds since 1970; None while there is no certificate.
    certified_until: float | None = None
    now: float = 0.0

    @property
    def ready(self) -> tuple[str, ...]:
        return tuple(status.model_id for status in self.models if status.state in SERVED)

    @property
    def running(self) -> int:
        return sum(status.running for status in self.models)

    @property
    def queued(self) -> int:
        return sum(status.queued for status in self.models)


def describe(facts: WorkerFacts) -> list[str]:
    """How the worker is, whole; what `aicli worker status` shows."""
    return [*_standing(facts), *_mesh(facts, was_there=False), *_models(facts), *([_load(facts)] if facts.ready else []), *_pause(facts)]


def tell(before: WorkerFacts, now: WorkerFacts) -> list[str]:
    """What is new since ``before``; the load is told separately, because it changes all the time."""
    said = [line for line in _standing(now) if line not in _standing(before)]
    said += _mesh_news(before, now)
    said += [line for line in _models(now) if line not in _models(before)]
    if now.is_paused != before.is_paused:
        said += _pause(now) or ["resumed: new requests come again"]
    return said


def tell_load(before: WorkerFacts, now: WorkerFacts) -> list[str]:
    return [] if (before.running, before.queued) == (now.running, now.queued) else [_load(now)]


# --- sentences ------------------------------------------------------------------------------------------------------


def _standing(facts: WorkerFacts) -> Iterator[str]:
    if facts.is_revoked:
        yield "an administrator has revoked this machine: only a new ticket lets it in again (aicli worker --join TICKET)"
    elif facts.certified_until is not None and facts.certified_until < facts.now:
        yield "the certificate has ended; asking auth for a new one …"


def _mesh(facts: WorkerFacts, *, was_there: bool) -> list[str]:
    """Who of the house is in touch, or why nobody is."""
    if facts.gateways:
        return [_connected(gateway) for gateway in facts.gateways[:_NAMED]] + _others(facts)
    lost = f"lost the mesh ({facts.why_lost}); trying again …" if facts.why_lost else "lost the mesh; trying again …"
    looking = lost if was_there else f"looking for the mesh {facts.mesh} …"
    if facts.trouble and not facts.is_attached:
        looking += f" ({facts.trouble})"
    return [looking, *(_unreached(node, why) for node, why in facts.unreached[:_NAMED])]


def _mesh_news(before: WorkerFacts, now: WorkerFacts) -> list[str]:
    if not now.gateways:
        known = _mesh(before, was_there=False)
        return [line for line in _mesh(now, was_there=bool(before.gateways)) if line not in known]
    old = {gateway.node: gateway for gateway in before.gateways}
    said = []
    for gateway in now.gateways:
        was = old.get(gateway.node)
        if was is None:
            said.append(_connected(gateway))
        elif was.path != gateway.path:
            said.append(f"gateway {_short(gateway.node)} is reached another way now ({_way(gateway)})")
    gone = [node for node in old if node not in {gateway.node for gateway in now.gateways}]
    return said + [f"gateway {_short(node)} is gone; {len(now.gateways)} more there" for node in gone]


def _connected(gateway: Reached) -> str:
    return f"connected to gateway {_short(gateway.node)} ({_way(gateway)})"


def _others(facts: WorkerFacts) -> list[str]:
    more = len(facts.gateways) - _NAMED
    return [f"and to {more} more"] if more > 0 else []


def _way(gateway: Reached) -> str:
    words = _PATHS.get(gateway.path, gateway.path)
    return words if gateway.round_trip_ms is None else f"{words}, {gateway.round_trip_ms:.0f} ms"


def _unreached(node: NodeId, why: str) -> str:
    return f"{_short(node)} is there and cannot be used: {why}"


def _models(facts: WorkerFacts) -> list[str]:
    waiting = [f"{status.model_id}: {status.detail}" for status in facts.models if status.state not in SERVED]
    names = facts.ready
    serving = f"serving {len(names)} model{'s' if len(names) != 1 else ''}: {', '.join(names)}" if names else "serving no model yet"
    return [*waiting, serving]


def _load(facts: WorkerFacts) -> str:
    queued = f", {facts.queued} waiting" if facts.queued else ""
    return f"{facts.running or 'no'} request{'' if facts.running == 1 else 's'} running{queued}"


def _pause(facts: WorkerFacts) -> list[str]:
    return ["paused by its owner: running answers finish, no new ones come (aicli worker resume)"] if facts.is_paused else []


def _short(node: NodeId) -> str:
    return f"{node[:9]}…"


# --- from a running node ----------------------------------------------------------------------------------------------


class MeshPaths(Protocol):
    """A node's transports."""

    def checks(self) -> tuple[Check, ...]: ...

    def round_trip_seconds(self, node: NodeId) -> float | None: ...


class ConsoleLines(Protocol):
    """What is looked at of a node."""

    id: NodeId
    mesh: MeshName
    directory: Directory
    trust: Trust

    @property
    def node_transports(self) -> MeshPaths:
        """How it is attached."""
        ...


def survey(node: ConsoleLines, statuses: tuple[ModelStatus, ...], *, is_paused: bool, now: float) -> WorkerFacts:
    """The facts of this moment."""
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
        certified_until=None if standing is None else float(standing.not_after),
        now=now,
    )


def _reached(node: ConsoleLines, entry: directory.DirectoryEntry) -> Reached:
    seconds = node.node_transports.round_trip_seconds(entry.node)
    return Reached(entry.role, entry.node, entry.path, None if seconds is None else seconds * 1000)


class ConsoleStatus:
    """Prints what is new, and writes the status file. ``look`` gives the facts of now."""

    def __init__(
        self, node: NodeId, look: Callable[[], WorkerFacts], write: Callable[[str], None] | None, status_file: Path | None
    ) -> None:
        self._node = node
        self._look = look
        self._write = write
        self._status_file = status_file
        self._told: WorkerFacts | None = None
        self._load_told: WorkerFacts | None = None
        self._load_at = 0.0
        #: Gateways that are there, since when.
        self._seen: dict[NodeId, float] = {}
        self._written: WorkerFacts | None = None
        self._written_at = 0.0

    async def run(self, look_seconds: float = LOOK_SECONDS) -> None:
        """Ends by cancellation."""
        while True:
            # First of all: what is not so yet at the very start, such as Hyperswarm, is no news.
            await asyncio.sleep(look_seconds)
            await self.step(time.monotonic())

    async def step(self, now: float) -> None:
        """One look at the facts."""
        facts = self._measured(self._look(), now)
        if self._write is not None:
            for line in self._news(facts, now):
                # A terminal that somebody has stopped with Ctrl-S must stop nothing else.
                await asyncio.to_thread(self._write, line)
        if self._status_file is not None and (
            self._written is None or _differ(self._written, facts) or now - self._written_at >= WRITE_EVERY_SECONDS
        ):
            self._written, self._written_at = facts, now
            # A full disk is no reason to stop serving: the age of the file shows it.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(private_file.replace, self._status_file, worker_status.encode(self._status(facts)))

    def _measured(self, facts: WorkerFacts, now: float) -> WorkerFacts:
        """Without gateways that came just now: how far away they are is known with their first PONG."""
        self._seen = {gateway.node: self._seen.get(gateway.node, now) for gateway in facts.gateways}
        fresh = {node for node, since in self._seen.items() if now - since < MEASURE_SECONDS}
        return replace(facts, gateways=tuple(each for each in facts.gateways if each.round_trip_ms is not None or each.node not in fresh))

    def _news(self, facts: WorkerFacts, now: float) -> list[str]:
        if self._told is None:
            said = [*_mesh(facts, was_there=False), *_standing(facts), *_models(facts), *_pause(facts)]
            self._load_told = facts
        else:
            said = tell(self._told, facts)
        self._told = facts
        load = tell_load(self._load_told or facts, facts)
        if load and now - self._load_at >= LOAD_EVERY_SECONDS:
            self._load_told, self._load_at = facts, now
            said += load
        return said

    def _status(self, facts: WorkerFacts) -> WorkerStatus:
        return WorkerStatus(
            datetime.now(UTC), facts.mesh, self._node, tuple(describe(facts)), facts.is_paused,
            facts.gateways, facts.ready, facts.running, facts.queued,
        )  # fmt: skip


def _differ(one: WorkerFacts, other: WorkerFacts) -> bool:
    """In what a reader would act on: round trips are never the same twice."""
    return _rounded(one) != _rounded(other)


def _rounded(facts: WorkerFacts) -> WorkerFacts:
    gateways = tuple(Reached(each.role, each.node, each.path, None) for each in facts.gateways)
    return replace(facts, now=0.0, gateways=gateways)
