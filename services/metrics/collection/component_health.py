"""What may be found of one part of the mesh, and the parts that are no process: paths, certificates, queues. Pure.

They are told from numbers and from the directory, and each is at most degraded: answers go on while they are wrong. Hundreds of nodes
have one component for their paths and one for their certificates, which name those that somebody has to look at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from services.metrics.alerting.rules import request_rules
from services.metrics.collection.health_signals import CertificateSignal, HealthSignals, QueueSignal

#: Names in a sentence; the rest is a number.
_NAMED: Final = 5
#: Nothing of a queue began for so long. What waits longer than QUEUE_SECONDS, 30 s where nobody chose, is refused, so that by now
#: everybody was.
STILL_AFTER: Final = timedelta(seconds=60)


class ComponentStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class ComponentFinding:
    """A component before it is known since when it is so."""

    name: str
    #: One of the kinds of ``ComponentHealth``.
    kind: str
    status: ComponentStatus
    detail: str
    #: Since when by the facts of this moment.
    since: datetime


@dataclass(frozen=True, slots=True)
class PathFacts:
    """How one node other than this is reached."""

    #: For people.
    node: str
    #: One of ``directory.PATHS``; empty where it never was reached.
    path: str
    #: Why it was never reached; empty of one that is.
    why_not: str = ""


def paths(ways: Sequence[PathFacts], now: datetime) -> Iterable[ComponentFinding]:
    """Nothing where there is nobody else."""
    if not ways:
        return
    missed = [f"{way.node} ({way.why_not or 'nobody knows why'})" for way in ways if not way.path]
    relayed = [way.node for way in ways if way.path == "relayed"]
    said = [
        *([f"not reached at all: {_named(missed)}; `aicli doctor` on its machine looks for the cause"] if missed else []),
        *([f"by a relay only, which is slower: {_named(relayed)}; a UDP port that is open there would spare it"] if relayed else []),
    ]
    yield ComponentFinding("paths", "path", ComponentStatus.DEGRADED if missed else ComponentStatus.HEALTHY, "; ".join(said), now)


def certificates(signs: HealthSignals, now: datetime) -> Iterable[ComponentFinding]:
    """Nothing where no node has a certificate: a mesh of one house needs none."""
    if not signs.certificates:
        return
    ending = [f"{one.holder} {_ends(one)}" for one in signs.certificates if one.ends_soon]
    unheard = [f"{one.holder} for {_span(one.list_seconds)}" for one in signs.certificates if one.has_old_list]
    said = [
        *([f"should have been renewed: {_named(ending)}; see docs/runbooks/certificate_expiring.md"] if ending else []),
        *([f"not told which nodes are revoked: {_named(unheard)}; see docs/runbooks/revocation_list_old.md"] if unheard else []),
    ]
    if said:
        yield ComponentFinding("certificates", "certificate", ComponentStatus.DEGRADED, "; ".join(said), now)
        return
    following = min(signs.certificates, key=lambda one: one.seconds_left)
    yield ComponentFinding(
        "certificates", "certificate", ComponentStatus.HEALTHY, f"the next that ends: {following.holder} {_ends(following)}", now
    )


def queues(signs: HealthSignals, now: datetime) -> Iterable[ComponentFinding]:
    """One for each model that somebody waits for."""
    return (_queue(queue, now) for queue in signs.queues)


def _queue(queue: QueueSignal, now: datetime) -> ComponentFinding:
    said = f"{queue.waiting:,} requests wait" if queue.waiting > 1 else "1 request waits"
    still = now - queue.moved_at
    if still >= STILL_AFTER:
        said += f", and none of its queue began for {_span(still.total_seconds())}: `aicli nodes` says what its workers do"
    elif queue.waiting > request_rules.QUEUE_IS_LONG:
        said += ": its workers are all busy; see docs/runbooks/queue_depth_high.md"
    else:
        return ComponentFinding(queue.model, "queue", ComponentStatus.HEALTHY, said, now)
    return ComponentFinding(queue.model, "queue", ComponentStatus.DEGRADED, said, now)


def _ends(certificate: CertificateSignal) -> str:
    left = certificate.seconds_left
    return f"ends in {_span(left)}" if left > 0 else f"ended {_span(-left)} ago"


def _named(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
