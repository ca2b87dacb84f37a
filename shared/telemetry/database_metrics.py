"""Exports what a service's database does, and logs when its replica begins or ends to answer."""

import math
from collections.abc import Callable
from functools import partial

from shared.telemetry import logs
from shared.telemetry.metrics_registry import Metrics

_log = logs.get(part="database")


class DatabaseMetrics:
    """``shared.stores.transactions.DatabaseReports`` for one database of a node."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.took: Callable[[float], None] = metrics.database_query_seconds.observe

    def pool(self, read: Callable[[], tuple[int, int, int]]) -> None:
        for place, state in enumerate(("used", "open", "most")):
            self._metrics.database_connections.labels(state=state).set_function(partial(_read, read, place))

    def size(self, schema: str, stored_bytes: int | None) -> None:
        self._metrics.database_bytes.labels(schema=schema).set(math.nan if stored_bytes is None else stored_bytes)

    def changed(self, state: str, detail: str) -> None:
        if detail:
            _log.warning("the primary answers instead of the replica", state=state, reason=detail)
        else:
            _log.info("the replica answers")

    def read_from(self, server: str) -> None:
        self._metrics.database_reads.labels(server=server).inc()

    def lag(self, seconds: float) -> None:
        self._metrics.database_replica_lag.set(seconds)


def _read(read: Callable[[], tuple[int, int, int]], place: int) -> float:
    return read()[place]
