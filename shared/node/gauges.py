"""What a node's /metrics says of its place on the mesh: links, paths, certificate, revocation list. Read when asked for."""

import time
from collections import Counter

from prometheus_client import Counter as Counted

from shared.directory import PATHS
from shared.node.eventing import Events
from shared.node.roads import Roads
from shared.telemetry.metrics import Metrics
from shared.trust import Trust


class Gauges:
    def __init__(self, metrics: Metrics, roads: Roads, trust: Trust, events: Events) -> None:
        self._metrics = metrics
        self._roads = roads
        self._trust = trust
        self._events = events
        #: What the counters have been given so far.
        self._counted: Counter[str] = Counter()

    def update(self) -> None:
        """Bring everything up to now; call it before the text is made."""
        metrics = self._metrics
        links = self._roads.links()
        metrics.links.labels(state="open").set(len(links))
        self._count("dropped events", metrics.events_dropped, self._events.dropped)
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
