"""The health of the whole: facts about nodes in, components with a status and a since out. Pure.

A service is healthy when a node of it can be used and no live one has a complaint, degraded when it lives but something is
wrong, and down when none lives. A server (PostgreSQL, Valkey, NATS) is what the services that need it say of it.

The whole is as bad as the worst of what an answer to a prompt needs. A worker that went without a goodbye degrades it while others
serve, for as long as it is remembered, an hour: somebody has lost a machine and may not know. One that was stopped, drained
or revoked was meant to go, and one that was never let in was never a part of the whole; neither counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import msgspec

from services.metrics.collection import component_health
from services.metrics.collection.component_health import ComponentFinding, ComponentStatus, PathFacts
from services.metrics.collection.health_signals import HealthSignals
from shared.api.gateway import Check
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import SERVICE_NAMES, SERVICE_ROLES, Role

_BADNESS = {ComponentStatus.HEALTHY: 0, ComponentStatus.DEGRADED: 1, ComponentStatus.DOWN: 2}

#: Without these a prompt has no answer. The others going down degrades the whole.
ESSENTIAL = frozenset({Role.AUTH, Role.GATEWAY, Role.WORKER})

#: The names of the checks that are about a server, in lower case -> the server's name.
SERVERS = {"postgresql": "PostgreSQL", "valkey": "Valkey", "nats": "NATS", "hyperswarm": "Hyperswarm"}
#: Not every mesh has it: where no service speaks of it, it is not missed; and without it the house still works.
OPTIONAL = "hyperswarm"
_NO_SIGNS = HealthSignals()
#: Of a worker: what to do is where it stands.
_LOST = "it went without a goodbye, see `aicli worker status` on its machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFact:
    """What is known of one node at one moment."""

    role: Role
    #: Short, for people.
    label: str
    alive: bool
    #: Alive, or gone, since then.
    since: datetime
    #: Why it is not to be used, by the directory; empty when it can be.
    why_not: str = ""
    #: What it said when it was asked; empty if it was not or did not answer.
    checks: tuple[Check, ...] = ()
    #: Why it did not answer; empty when it did or was not asked.
    no_answer: str = ""
    #: What others hold against it, whatever it says itself.
    doubts: tuple[str, ...] = ()
    #: The best way to it, or the last one there was, as ``NodeView`` has it; empty where there never was one.
    path: str = ""
    #: Of one that is gone: it drained, or was revoked.
    said_goodbye: bool = False

    @property
    def complaint(self) -> str:
        """What is wrong with a live node; empty when nothing is."""
        if self.why_not:
            return self.why_not
        if self.no_answer:
            return f"alive, but did not say how it is: {self.no_answer}"
        wrong = (f"{check.name}: {check.detail or 'not ok'}" for check in self.checks if not check.ok)
        return "; ".join([*wrong, *self.doubts])

    @property
    def was_lost(self) -> bool:
        """It was here, and went without a word."""
        return not self.alive and bool(self.path) and not self.said_goodbye


def decide(
    nodes: Sequence[NodeFact], now: datetime, started_at: datetime, before: Mapping[str, ComponentHealth], signs: HealthSignals = _NO_SIGNS
) -> SystemHealth:
    """``started_at`` is when this service began to look; ``before`` is the last decision, by ``key``."""
    services = {role: _service(role, [fact for fact in nodes if fact.role is role], now, started_at) for role in SERVICE_ROLES}
    servers = [_server(check, name, nodes, now) for check, name in SERVERS.items() if check != OPTIONAL or _is_spoken_of(check, nodes)]
    # One that said goodbye or was revoked is not down: it was meant to go, and `aicli nodes` shows it.
    workers = [_worker(fact, now) for fact in nodes if fact.role is Role.WORKER and (fact.alive or not fact.said_goodbye)]
    parts = [*component_health.certificates(signs, now), *component_health.queues(signs, now)]
    found = [
        *services.values(),
        *servers,
        *component_health.paths([_way(fact) for fact in nodes if _has_way(fact)], now),
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
    """By the label of a node: how often gateways caught it telling wrong counts, and what it recorded that was refused."""
    return {label: (*_caught(catches.get(label, 0)), *filter(None, [refused.get(label)])) for label in {*catches, *refused}}


def _caught(times: int) -> Iterator[str]:
    if times:
        yield (
            f"it told wrong counts of tokens {times:,} {'times' if times > 1 else 'time'} within the last hour; nobody pays for those"
            " answers, and from three on a gateway keeps it in quarantine: see docs/runbooks/wrong_counts.md"
        )


def servers_up(nodes: Sequence[NodeFact]) -> Mapping[str, bool]:
    """By the names of the checks: whether any service reaches the server. Nothing of those that no service could be asked about."""
    reached = {name: [check.ok for _, check in _said(name, nodes)] for name in SERVERS}
    return {name: any(answers) for name, answers in reached.items() if answers}


def key(component: ComponentHealth) -> str:
    """What makes a component the same one in two decisions."""
    return f"{component.kind} {component.name}"


def worst(statuses: Iterable[ComponentStatus]) -> ComponentStatus:
    return max(statuses, key=_BADNESS.__getitem__, default=ComponentStatus.HEALTHY)


def _at_most_degraded(status: ComponentStatus) -> ComponentStatus:
    return ComponentStatus.HEALTHY if status is ComponentStatus.HEALTHY else ComponentStatus.DEGRADED


def _service(role: Role, nodes: Sequence[NodeFact], now: datetime, started_at: datetime) -> ComponentFinding:
    name = SERVICE_NAMES[role]
    living = [fact for fact in nodes if fact.alive]
    if not nodes:
        detail = f"not seen since the metrics service started; see `aicli stack status`, or start it with `python -m services.{name}`"
        return ComponentFinding(name, "service", ComponentStatus.DOWN, detail, started_at)
    if not living:
        last = max(nodes, key=lambda fact: fact.since)
        detail = f"no node of it is alive; the last one, {last.label}, went: {last.why_not or 'without a word'}"
        return ComponentFinding(name, "service", ComponentStatus.DOWN, f"{detail}; see `aicli stack logs {name}`", last.since)
    complaints = [f"{fact.label}: {fact.complaint}" for fact in living if fact.complaint]
    if complaints:
        return ComponentFinding(name, "service", ComponentStatus.DEGRADED, "; ".join(complaints), now)
    return ComponentFinding(name, "service", ComponentStatus.HEALTHY, "", min(fact.since for fact in living))


def _is_spoken_of(check_name: str, nodes: Sequence[NodeFact]) -> bool:
    return any(check.name.lower() == check_name for fact in nodes for check in fact.checks)


def _said(check_name: str, nodes: Sequence[NodeFact]) -> list[tuple[NodeFact, Check]]:
    """What the living say of a server."""
    return [(fact, check) for fact in nodes if fact.alive for check in fact.checks if check.name.lower() == check_name]


def _server(check_name: str, name: str, nodes: Sequence[NodeFact], now: datetime) -> ComponentFinding:
    said = _said(check_name, nodes)
    failed = [f"{SERVICE_NAMES[fact.role]} says: {check.detail or 'not ok'}" for fact, check in said if not check.ok]
    if not said:
        return ComponentFinding(name, "server", ComponentStatus.DEGRADED, "unknown: no service that uses it could be asked", now)
    if not failed:
        return ComponentFinding(name, "server", ComponentStatus.HEALTHY, "", now)
    status = ComponentStatus.DOWN if len(failed) == len(said) and check_name != OPTIONAL else ComponentStatus.DEGRADED
    return ComponentFinding(name, "server", status, "; ".join(dict.fromkeys(failed)), now)


def _worker(fact: NodeFact, now: datetime) -> ComponentFinding:
    if fact.was_lost:
        return ComponentFinding(fact.label, "worker", ComponentStatus.DOWN, f"{_LOST}: {fact.why_not or 'no reason is known'}", fact.since)
    if not fact.alive:
        return ComponentFinding(fact.label, "worker", ComponentStatus.DOWN, fact.why_not or "gone without a word", fact.since)
    if fact.complaint:
        return ComponentFinding(fact.label, "worker", ComponentStatus.DEGRADED, fact.complaint, now)
    return ComponentFinding(fact.label, "worker", ComponentStatus.HEALTHY, "", fact.since)


def _has_way(fact: NodeFact) -> bool:
    """Whoever was here and went has none any more, which its own line says."""
    return fact.path not in ("", "self") if fact.alive else not (fact.path or fact.said_goodbye)


def _way(fact: NodeFact) -> PathFacts:
    return PathFacts(f"{SERVICE_NAMES[fact.role]} {fact.label}", fact.path, fact.why_not)


def _dated(finding: ComponentFinding, now: datetime, before: Mapping[str, ComponentHealth]) -> ComponentHealth:
    component = ComponentHealth(
        name=finding.name, kind=finding.kind, status=finding.status, since=min(finding.since, now), detail=finding.detail
    )
    last = before.get(key(component))
    if last is None:
        return component
    if last.status == component.status:
        return msgspec.structs.replace(component, since=last.since)
    # It changed between two looks. The directory knows the moment of a death, and of a return from it, and of nothing else.
    is_death_or_return = ComponentStatus.DOWN in (finding.status, last.status) and finding.status is not ComponentStatus.DEGRADED
    return component if is_death_or_return else msgspec.structs.replace(component, since=now)
