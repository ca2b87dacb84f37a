"""What a node's /metrics says of its place on the mesh: links, paths, round trips, certificate, revocation list. Read when asked for."""

import time
from collections import Counter
from collections.abc import Iterable

from prometheus_client import Counter as Counted

from shared.discovery.directory import PATHS
from shared.identity.trust import Trust
from shared.node.domain_events import DomainEvents
from shared.node.host import Host
from shared.node.labelled_gauge import LabelledGauge
from shared.node.transports import Transports
from shared.telemetry.instruments import node_label
from shared.telemetry.metrics_registry import Metrics
from shared.transports.link import Link

#: Peers whose round trip is shown: of a larger mesh it says enough, and a node's text stays short.
MOST_PEERS = 200


class MeshGauges:
    def __init__(self, metrics: Metrics, node_transports: Transports, trust: Trust, events: DomainEvents, host: Host) -> None:
        self._metrics = metrics
        self._roads = node_transports
        self._trust = trust
        self._events = events
        self._host = host
        self._round_trips = LabelledGauge(lambda: metrics.peer_rtt)
        self._mean_round_trips = LabelledGauge(lambda: metrics.round_trip)
        #: What the counters have been given so far.
        self._counted: Counter[str] = Counter()
        # There from the start: Prometheus sees the growth of what was there before.
        for _ in (metrics.nats_reconnects, metrics.nats_callback_errors, metrics.contested_keys):
            pass

    def update(self) -> None:
        """Bring everything up to now; call it before the text is made."""
        metrics = self._metrics
        self._host.update()
        links = self._roads.links()
        metrics.links.labels(state="open").set(len(links))
        self._round_trips.show(round_trips(links))
        self._mean_round_trips.show(mean_round_trips(links))
        self._count("dropped events", metrics.events_dropped, self._events.dropped)
        if self._roads.nats is not None:
            self._count("callback errors", metrics.nats_callback_errors, self._roads.nats.nats.callback_errors)
        if self._roads.swarm is not None:
            by_path = Counter(link.path for link in links)
            for path in PATHS:
                metrics.links_by_path.labels(path=path).set(by_path[path])
            self._count("sidecar restarts", metrics.sidecar_restarts, self._roads.swarm.restarts)
            self._count("strangers", metrics.strangers_refused, self._roads.swarm.strangers_refused)
        now = time.time()
        if (certificate := self._trust.standing()) is not None:
            metrics.certificate_seconds_left.set(certificate.not_after - now)
        if self._trust.list is not None:
            metrics.revocation_list_age.set(max(0.0, now - self._trust.list.issued_at))

    def _count(self, what: str, counter: Counted, total: int) -> None:
        counter.inc(total - self._counted[what])
        self._counted[what] = total


def round_trips(links: Iterable[Link]) -> dict[tuple[str, ...], float]:
    """Seconds by the labels peer and path, of the links that have measured one: the shortest where there are several. Pure."""
    found: dict[tuple[str, ...], float] = {}
    for link in links:
        labels = (node_label(link.peer.node), link.path)
        seconds = link.round_trip_seconds
        # The links come in the order in which they were opened, so those that are shown stay while they are open.
        if seconds is not None and (labels in found or len(found) < MOST_PEERS):
            found[labels] = min(seconds, found.get(labels, seconds))
    return found


def mean_round_trips(links: Iterable[Link]) -> dict[tuple[str, ...], float]:
    """Seconds by the path, over all links of it that have measured one. Pure."""
    found: dict[tuple[str, ...], list[float]] = {}
    for link in links:
        if link.round_trip_seconds is not None:
            found.setdefault((link.path,), []).append(link.round_trip_seconds)
    return {path: sum(seconds) / len(seconds) for path, seconds in found.items()}
