"""Adds partitions of the gateway's growing tables ahead of time, and drops those of the request log that are too old."""

from shared.stores import database
from shared.telemetry import Metrics, logs

#: Four weeks of the request log and a month of the ledger, so that a gateway may be away for long.
AHEAD_DAYS = 35

_log = logs.get(part="partitions")


class Partitions:
    """Any number of gateways may do both at once. Every method may raise Unavailable.

    Where a lock is not to be had at once nothing happens; a later round finds it free.
    """

    def __init__(self, opened: database.Database, metrics: Metrics) -> None:
        self._database = opened
        self._metrics = metrics

    async def extend(self) -> None:
        while name := await self._database.value("add_partition", AHEAD_DAYS):
            _log.info("a partition was added", name=name)
        self._metrics.partitions_ahead.set(await self._database.value("measure_partitions_ahead"))

    async def drop_old(self, days: int) -> None:
        """Partitions of the request log, all of whose rows are older than so many days."""
        while name := await self._database.value("drop_partition", days):
            _log.info("an old partition was dropped", name=name, older_than_days=days)
