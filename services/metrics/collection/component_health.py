"""Define component findings, and derive those of components that are not processes: paths, certificates and queues. Pure.

These are at most degraded, because requests still succeed. All nodes share one component for paths and one for certificates, which
name the nodes that need attention.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from services.metrics.alerting.rules import request_rules
from services.metrics.collection.health_signals import CertificateSignal, HealthSignals, QueueSignal

_NAMED: Final = 5
#: A queue is stuck after this time without a start. Requests wait at most QUEUE_SECONDS (30 s by default), so all of them were rejected.
STILL_AFTER: Final = timedelta(seconds=60)


class ComponentStatus(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class ComponentFinding:
    """A component whose `since` still has to be compared with the previous decision."""

    name: str
    kind: str
    status: ComponentStatus
    detail: str
    since: datetime


@dataclass(frozen=True, slots=True)
class PathFacts:
    """How another node is reached."""

    node: str
    #: One of ``directory.PATHS``; empty if it was never reached.
    path: str
    why_not: str = ""


def paths(paths_of_nodes: Sequence[PathFacts], now: datetime) -> Iterable[ComponentFinding]:
    """Yield the component of all paths; nothing without other nodes."""
    if not paths_of_nodes:
        return
    missed = [f"{path.node} ({path.why_not or 'unknown reason'})" for path in paths_of_nodes if not path.path]
    relayed = [path.node for path in paths_of_nodes if path.path == "relayed"]
    details = [
        *([f"unreachable: {_named(missed)}; run `aicli doctor` on its machine"] if missed else []),
        *([f"reached through a relay only, which is slower: {_named(relayed)}; open a UDP port there"] if relayed else []),
    ]
    yield ComponentFinding("paths", "path", ComponentStatus.DEGRADED if missed else ComponentStatus.HEALTHY, "; ".join(details), now)


def certificates(signals: HealthSignals, now: datetime) -> Iterable[ComponentFinding]:
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


def queues(signals: HealthSignals, now: datetime) -> Iterable[ComponentFinding]:
    """Return one component per model with queued requests."""
    return (_queue(queue, now) for queue in signals.queues)


def _queue(queue: QueueSignal, now: datetime) -> ComponentFinding:
    detail = f"{queue.waiting:,} requests queued" if queue.waiting > 1 else "1 request queued"
    still = now - queue.moved_at
    if still >= STILL_AFTER:
        detail += f", and none started for {_span(still.total_seconds())}: check its workers with `aicli nodes`"
    elif queue.waiting > request_rules.QUEUE_IS_LONG:
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
