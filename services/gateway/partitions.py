"""Adds partitions to the growing tables in advance, and drops old ones of the request log."""

from shared.stores import database
from shared.telemetry import Metrics, logs

#: Four weeks of the request log or a month of the ledger, so that gateways may be down for long.
AHEAD_DAYS = 35

_log = logs.get(part="partitions")


class Partitions:
    """Adds and drops partitions, on any number of gateways at the same time. Every method may raise Unavailable.

    Does nothing if a lock isn't available immediately; a later round retries.
    """

    def __init__(self, opened: database.Database, metrics: Metrics) -> None:
        self._database = opened
        self._metrics = metrics

    async def extend(self) -> None:
        while name := await self._database.value("add_partition", AHEAD_DAYS):
            _log.info("partition added", name=name)
        self._metrics.partitions_ahead.set(await self._database.value("measure_partitions_ahead"))

    async def drop_old(self, days: int) -> None:
        """Drop partitions of the request log whose rows are all older than this."""
        while name := await self._database.value("drop_partition", days):
            _log.info("partition dropped", name=name, older_than_days=days)
