"""Repeats the gateway's background work on PostgreSQL, adds and drops partitions, and measures when each job last succeeded."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum

from shared.background import tasks
from shared.stores import database
from shared.telemetry import Metrics, logs

#: The pause is 20 times as long as the round, so a job runs for at most a twentieth of the time.
_SHARE = 20
#: The longest pause, even after a longer round; the alert upkeep_late fires after three hours.
_MAX_PAUSE_SECONDS = 3600.0

#: Four weeks of the request log or a month of the ledger, so that gateways may be down for long.
AHEAD_DAYS = 35

_log, _partition_log = logs.get(part="upkeep"), logs.get(part="partitions")


class UpkeepJob(StrEnum):
    """The values of the label ``job``. Features have their own."""

    VERIFY = "verify"
    CHECKPOINT = "checkpoint"
    ROLL = "roll"
    RETENTION = "retention"
    PARTITIONS = "partitions"
    ADOPTION = "adoption"
    KEY_POLICIES = "key_policies"
    BILLING = "billing"
    LOST_EVENTS = "lost_events"
    NOTICES = "notices"
    MODELS = "models"
    ITEMS = "items"


async def repeat(job: str, seconds: float, work: Callable[[], Awaitable[object]], metrics: Metrics) -> None:
    """Run ``work`` forever. A failed round is logged, and the job's age, which the alerts use, grows until a round succeeds."""
    succeeded_at = time.monotonic()
    metrics.upkeep_age.labels(job=str(job)).set_function(lambda: time.monotonic() - succeeded_at)
    last_success = metrics.upkeep_last_success.labels(job=str(job))
    while True:
        began = time.monotonic()
        if await attempt(job, work):
            succeeded_at = time.monotonic()
            last_success.set_to_current_time()
        await asyncio.sleep(pause_seconds(seconds, time.monotonic() - began))


async def attempt(job: str, work: Callable[[], Awaitable[object]]) -> bool:
    """Return whether ``work`` has succeeded; otherwise it is logged."""
    return await tasks.attempt(str(job), work)


def pause_seconds(seconds: float, took: float) -> float:
    """Return the pause after a round that took ``took`` seconds, for a job with an interval of ``seconds``."""
    return min(_MAX_PAUSE_SECONDS, max(seconds, _SHARE * took))


class Partitions:
    """Adds partitions to the growing tables in advance, and drops old ones of the request log. Every method may raise Unavailable.

    Any number of gateways may do so at the same time. Does nothing if a lock isn't available immediately; a later round retries.
    """

    def __init__(self, opened: database.Database, metrics: Metrics) -> None:
        self._database = opened
        self._metrics = metrics

    async def extend(self) -> None:
        while name := await self._database.value("add_partition", AHEAD_DAYS):
            _partition_log.info("partition added", name=name)
        self._metrics.partitions_ahead.set(await self._database.value("measure_partitions_ahead"))

    async def drop_old(self, days: int) -> None:
        """Drop partitions of the request log whose rows are all older than this."""
        while name := await self._database.value("drop_partition", days):
            _partition_log.info("partition dropped", name=name, older_than_days=days)
