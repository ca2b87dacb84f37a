"""Updates the metrics of a node's links, paths, round trips, certificate and revocation list."""

import time
from collections import Counter
from collections.abc import Iterable

from prometheus_client import Counter as Counted

from shared.identity.trust import Trust
from shared.node.domain_events import DomainEvents
from shared.node.transports import Transports
from shared.protocol.directory import PATHS
from shared.telemetry.instrument import node_label
from shared.telemetry.metrics_registry import LabelledGauge, Metrics
from shared.transports.link import Link

#: The maximum number of peers with a round-trip metric, to keep the output short on large meshes.
MAX_PEERS = 200


class MeshGauges:
    def __init__(self, metrics: Metrics, node_transports: Transports, trust: Trust, events: DomainEvents) -> None:
        self._metrics = metrics
        self._transports = node_transports
        self._trust = trust
        self._events = events
        self._round_trips = LabelledGauge(lambda: metrics.peer_rtt)
        self._mean_round_trips = LabelledGauge(lambda: metrics.round_trip)
        self._counted: Counter[str] = Counter()
        # Create them at the start, so that Prometheus sees their first increase.
        for _ in (metrics.nats_reconnects, metrics.nats_callback_errors, metrics.contested_keys):
            pass

    def update(self) -> None:
        """Update all metrics. Call it before they are rendered."""
        metrics = self._metrics
        links = self._transports.links()
        metrics.links.labels(state="open").set(len(links))
        self._round_trips.show(round_trips(links))
        self._mean_round_trips.show(mean_round_trips(links))
        self._count("dropped events", metrics.events_dropped, self._events.dropped)
        if self._transports.nats is not None:
            self._count("callback errors", metrics.nats_callback_errors, self._transports.nats.nats.callback_errors)
        if self._transports.swarm is not None:
            by_path = Counter(link.path for link in links)
            for path in PATHS:
                metrics.links_by_path.labels(path=path).set(by_path[path])
            self._count("sidecar restarts", metrics.sidecar_restarts, self._transports.swarm.restarts)
            self._count("strangers", metrics.strangers_refused, self._transports.swarm.strangers_refused)
        now = time.time()
        if (certificate := self._trust.standing()) is not None:
            metrics.certificate_seconds_left.set(certificate.not_after - now)
        if self._trust.list is not None:
            metrics.revocation_list_age.set(max(0.0, now - self._trust.list.issued_at))

    def _count(self, what: str, counter: Counted, total: int) -> None:
        counter.inc(total - self._counted[what])
        self._counted[what] = total


def round_trips(links: Iterable[Link]) -> dict[tuple[str, ...], float]:
    """Return the shortest measured round trip in seconds by peer and path. Pure."""
    found: dict[tuple[str, ...], float] = {}
    for link in links:
        labels = (node_label(link.peer.node), link.path)
        seconds = link.round_trip_seconds
        # Links are ordered by age, so a peer that is shown stays shown.
        if seconds is not None and (labels in found or len(found) < MAX_PEERS):
            found[labels] = min(seconds, found.get(labels, seconds))
    return found


def mean_round_trips(links: Iterable[Link]) -> dict[tuple[str, ...], float]:
    """Return the mean of the measured round trips in seconds by path. Pure."""
    found: dict[tuple[str, ...], list[float]] = {}
    for link in links:
        if link.round_trip_seconds is not None:
            found.setdefault((link.path,), []).append(link.round_trip_seconds)
    return {path: sum(seconds) / len(seconds) for path, seconds in found.items()}
