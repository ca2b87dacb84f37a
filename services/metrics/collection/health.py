"""Decide the health of the mesh and of each component from facts about its nodes. Pure.

A service is healthy if no live node of it has a problem, degraded if one has, and down without live nodes. The status of a server
(PostgreSQL, Valkey, NATS) is what the services that use it report.

The mesh is as bad as the worst component that a prompt needs. A worker that disappeared without shutting down cleanly degrades it for
an hour, even while others serve: its owner may not know. Workers that were stopped, drained, revoked or never admitted don't count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain
from typing import Final

import msgspec

from services.metrics.collection.health_signals import CertificateSignal, HealthSignals, QueueSignal
from shared.api.gateway import Check
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import SERVICE_NAMES, SERVICE_ROLES, Role

#: Prompts need these. If another service is down, the mesh is degraded.
ESSENTIAL = frozenset({Role.AUTH, Role.GATEWAY, Role.WORKER})

#: Check name in lower case -> name of the server.
SERVERS = {"postgresql": "PostgreSQL", "valkey": "Valkey", "nats": "NATS", "hyperswarm": "Hyperswarm"}
#: Listed only if a service reports it, and at most degraded.
OPTIONAL = "hyperswarm"
_NO_SIGNALS = HealthSignals()
_LOST = "disappeared without shutting down; run `aicli worker status` on its machine"
#: How many nodes a component names.
_NAMED: Final = 5
#: More requests than this are a long queue.
QUEUE_IS_LONG: Final = 100
#: A queue is stuck after this time without a start. Requests wait at most QUEUE_SECONDS (30 s by default), so all of them were rejected.
STILL_AFTER: Final = timedelta(seconds=60)


class ComponentStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"


_BADNESS = {ComponentStatus.HEALTHY: 0, ComponentStatus.DEGRADED: 1, ComponentStatus.DOWN: 2}


@dataclass(frozen=True, slots=True)
class ComponentFinding:
    """A component whose `since` still has to be compared with the previous decision."""

    name: str
    kind: str
    status: ComponentStatus
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFact:
    role: Role
    label: str
    alive: bool
    since: datetime
    #: Why the directory considers it unusable; empty if it is usable.
    why_not: str = ""
    #: Its own checks; empty if it was not asked or did not respond.
    checks: tuple[Check, ...] = ()
    #: Why it did not respond; empty if it did or was not asked.
    no_answer: str = ""
    doubts: tuple[str, ...] = ()
    #: The current or last path to it, as in ``NodeView``; empty if it was never reached.
    path: str = ""
    #: Whether it drained or was revoked before it went.
    left_cleanly: bool = False
    #: What is wrong with its clock; empty if nothing is.
    wrong_clock: str = ""

    @property
    def complaint(self) -> str:
        """Return the problem of a live node; empty without one."""
        if self.why_not:
            return self.why_not
        if self.no_answer:
            return f"alive, but its health check failed: {self.no_answer}"
        wrong = (f"{check.name}: {check.detail or 'not ok'}" for check in self.checks if not check.ok)
        return "; ".join([*wrong, *self.doubts])

    @property
    def was_lost(self) -> bool:
        """Return whether it disappeared without shutting down cleanly."""
        return not self.alive and bool(self.path) and not self.left_cleanly


def decide(
    nodes: Sequence[NodeFact],
    now: datetime,
    started_at: datetime,
    before: Mapping[str, ComponentHealth],
    signals: HealthSignals = _NO_SIGNALS,
) -> SystemHealth:
    """Return the decision. ``started_at`` is when this service started; ``before`` is the previous decision, by ``key``."""
    services = {role: _service(role, [fact for fact in nodes if fact.role is role], now, started_at) for role in SERVICE_ROLES}
    servers = [_server(check, name, nodes, now) for check, name in SERVERS.items() if check != OPTIONAL or _is_reported(check, nodes)]
    # Leave out workers that were meant to go; `aicli nodes` lists them.
    workers = [_worker(fact, now) for fact in nodes if fact.role is Role.WORKER and (fact.alive or not fact.left_cleanly)]
    parts = [*_certificates(signals, now), *(_queue(queue, now) for queue in signals.queues)]
    found = [
        *services.values(),
        *servers,
        *_paths(nodes, now),
        *_clocks(nodes, now),
        *parts,
        *sorted(workers, key=lambda finding: finding.name),
    ]
    components = tuple(_dated(finding, now, before) for finding in found)
    whole = worst(
        chain(
            (finding.status if role in ESSENTIAL else _at_most_degraded(finding.status) for role, finding in services.items()),
            (finding.status for finding in (*servers, *parts)),
            (ComponentStatus.DEGRADED for fact in nodes if fact.role is Role.WORKER and fact.was_lost),
        )
    )
    return SystemHealth(status=whole, components=components)


def doubts(catches: Mapping[str, int], refused: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """Return problems by node label: wrong token counts that gateways detected, and rejected records."""
    return {label: (*_caught(catches.get(label, 0)), *filter(None, [refused.get(label)])) for label in {*catches, *refused}}


def _caught(times: int) -> Iterator[str]:
    if times:
        yield (
            f"it reported wrong token counts {times:,} {'times' if times > 1 else 'time'} within the last hour. Those answers are not"
            " billed, and the third one quarantines it: see docs/runbooks/wrong_counts.md"
        )


def servers_up(nodes: Sequence[NodeFact]) -> Mapping[str, bool]:
    """Return whether any service reaches each server, by check name; without servers that no service reports."""
    reached = {name: [check.ok for _, check in _find_checks(name, nodes)] for name in SERVERS}
    return {name: any(answers) for name, answers in reached.items() if answers}


def key(component: ComponentHealth) -> str:
    """Return the identity of a component across decisions."""
    return f"{component.kind} {component.name}"


def worst(statuses: Iterable[ComponentStatus]) -> ComponentStatus:
    return max(statuses, key=_BADNESS.__getitem__, default=ComponentStatus.HEALTHY)


def _at_most_degraded(status: ComponentStatus) -> ComponentStatus:
    return ComponentStatus.HEALTHY if status is ComponentStatus.HEALTHY else ComponentStatus.DEGRADED


def _service(role: Role, nodes: Sequence[NodeFact], now: datetime, started_at: datetime) -> ComponentFinding:
    name = SERVICE_NAMES[role]
    living = [fact for fact in nodes if fact.alive]
    if not nodes:
        detail = f"not seen since the metrics service started; check `aicli stack status`, or start it with `python -m services.{name}`"
        return ComponentFinding(name, "service", ComponentStatus.DOWN, detail, started_at)
    if not living:
        last = max(nodes, key=lambda fact: fact.since)
        detail = f"no live node; the last one, {last.label}, is gone: {last.why_not or 'unknown reason'}"
        return ComponentFinding(name, "service", ComponentStatus.DOWN, f"{detail}; see `aicli stack logs {name}`", last.since)
    complaints = [f"{fact.label}: {fact.complaint}" for fact in living if fact.complaint]
    if complaints:
        return ComponentFinding(name, "service", ComponentStatus.DEGRADED, "; ".join(complaints), now)
    return ComponentFinding(name, "service", ComponentStatus.HEALTHY, "", min(fact.since for fact in living))


def _is_reported(check_name: str, nodes: Sequence[NodeFact]) -> bool:
    return any(check.name.lower() == check_name for fact in nodes for check in fact.checks)


def _find_checks(check_name: str, nodes: Sequence[NodeFact]) -> list[tuple[NodeFact, Check]]:
    return [(fact, check) for fact in nodes if fact.alive for check in fact.checks if check.name.lower() == check_name]


def _server(check_name: str, name: str, nodes: Sequence[NodeFact], now: datetime) -> ComponentFinding:
    reports = _find_checks(check_name, nodes)
    failed = [f"{SERVICE_NAMES[fact.role]} reports: {check.detail or 'not ok'}" for fact, check in reports if not check.ok]
    if not reports:
        return ComponentFinding(name, "server", ComponentStatus.DEGRADED, "unknown: no service that uses it responded", now)
    if not failed:
        return ComponentFinding(name, "server", ComponentStatus.HEALTHY, "", now)
    status = ComponentStatus.DOWN if len(failed) == len(reports) and check_name != OPTIONAL else ComponentStatus.DEGRADED
    return ComponentFinding(name, "server", status, "; ".join(dict.fromkeys(failed)), now)


def _worker(fact: NodeFact, now: datetime) -> ComponentFinding:
    if fact.was_lost:
        return ComponentFinding(fact.label, "worker", ComponentStatus.DOWN, f"{_LOST}: {fact.why_not or 'unknown reason'}", fact.since)
    if not fact.alive:
        return ComponentFinding(fact.label, "worker", ComponentStatus.DOWN, fact.why_not or "unknown reason", fact.since)
    if fact.complaint:
        return ComponentFinding(fact.label, "worker", ComponentStatus.DEGRADED, fact.complaint, now)
    return ComponentFinding(fact.label, "worker", ComponentStatus.HEALTHY, "", fact.since)


def _dated(finding: ComponentFinding, now: datetime, before: Mapping[str, ComponentHealth]) -> ComponentHealth:
    component = ComponentHealth(
        name=finding.name, kind=finding.kind, status=finding.status, since=min(finding.since, now), detail=finding.detail
    )
    last = before.get(key(component))
    if last is None:
        return component
    if last.status == component.status:
        return msgspec.structs.replace(component, since=last.since)
    # The directory knows when a node went or came back, but not when other changes happened.
    is_death_or_return = ComponentStatus.DOWN in (finding.status, last.status) and finding.status is not ComponentStatus.DEGRADED
    return component if is_death_or_return else msgspec.structs.replace(component, since=now)


# Components that are not processes are at most degraded, because requests still succeed. All nodes share one for paths and one for
# certificates.


def _has_path(fact: NodeFact) -> bool:
    """Return whether the paths component covers this node. A node that is gone has its own component."""
    return fact.path not in ("", "self") if fact.alive else not (fact.path or fact.left_cleanly)


def _paths(nodes: Sequence[NodeFact], now: datetime) -> Iterable[ComponentFinding]:
    """Yield the component of all paths; nothing without other nodes."""
    named = [(f"{SERVICE_NAMES[fact.role]} {fact.label}", fact) for fact in nodes if _has_path(fact)]
    if not named:
        return
    missed = [f"{name} ({fact.why_not or 'unknown reason'})" for name, fact in named if not fact.path]
    relayed = [name for name, fact in named if fact.path == "relayed"]
    details = [
        *([f"unreachable: {_named(missed)}; run `aicli doctor` on its machine"] if missed else []),
        *([f"reached through a relay only, which is slower: {_named(relayed)}; open a UDP port there"] if relayed else []),
    ]
    yield ComponentFinding("paths", "path", ComponentStatus.DEGRADED if missed else ComponentStatus.HEALTHY, "; ".join(details), now)


def _clocks(nodes: Sequence[NodeFact], now: datetime) -> Iterable[ComponentFinding]:
    """Yield the component of all clocks if one is wrong. It is a notice: requests succeed."""
    wrong = [f"{SERVICE_NAMES.get(fact.role, fact.role)} {fact.label}: {fact.wrong_clock}" for fact in nodes if fact.wrong_clock]
    if wrong:
        yield ComponentFinding("clocks", "clock", ComponentStatus.DEGRADED, _named(wrong), now)


def _certificates(signals: HealthSignals, now: datetime) -> Iterable[ComponentFinding]:
    """Yield the component of all certificates; nothing in a mesh without certificates."""
    if not signals.certificates:
        return
    ending = [f"{one.holder} {_ends(one)}" for one in signals.certificates if one.ends_soon]
    outdated = [f"{one.holder} for {_span(one.list_seconds)}" for one in signals.certificates if one.has_old_list]
    details = [
        *([f"renewal overdue: {_named(ending)}; see docs/runbooks/certificate_expiring.md"] if ending else []),
        *([f"revocation list outdated: {_named(outdated)}; see docs/runbooks/revocation_list_old.md"] if outdated else []),
    ]
    if details:
        yield ComponentFinding("certificates", "certificate", ComponentStatus.DEGRADED, "; ".join(details), now)
        return
    following = min(signals.certificates, key=lambda one: one.seconds_left)
    yield ComponentFinding(
        "certificates", "certificate", ComponentStatus.HEALTHY, f"next to expire: {following.holder} {_ends(following)}", now
    )


def _queue(queue: QueueSignal, now: datetime) -> ComponentFinding:
    detail = f"{queue.waiting:,} requests queued" if queue.waiting > 1 else "1 request queued"
    still = now - queue.moved_at
    if still >= STILL_AFTER:
        detail += f", and none started for {_span(still.total_seconds())}: check its workers with `aicli nodes`"
    elif queue.waiting > QUEUE_IS_LONG:
        detail += ": all its workers are busy; see docs/runbooks/queue_depth_high.md"
    else:
        return ComponentFinding(queue.model, "queue", ComponentStatus.HEALTHY, detail, now)
    return ComponentFinding(queue.model, "queue", ComponentStatus.DEGRADED, detail, now)


def _ends(certificate: CertificateSignal) -> str:
    left = certificate.seconds_left
    return f"expires in {_span(left)}" if left > 0 else f"expired {_span(-left)} ago"


def _named(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
