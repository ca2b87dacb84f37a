"""Repeats the gateway's background work on PostgreSQL, and measures for each job how long ago it last succeeded."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum

from shared import database, errors
from shared.telemetry import Metrics, logs

#: A job runs for at most this part of the time, however large the tables are.
_SHARE = 20

_log = logs.get(part="upkeep")


class UpkeepJob(StrEnum):
    """The values of the label ``job``."""

    VERIFY = "verify"
    CHECKPOINT = "checkpoint"
    ROLL = "roll"
    RETENTION = "retention"
    PARTITIONS = "partitions"


async def repeat(job: UpkeepJob, seconds: float, work: Callable[[], Awaitable[object]], metrics: Metrics) -> None:
    """Run ``work`` forever. A round that fails is logged, and the job's age grows until a round succeeds; the alerts compare that age."""
    succeeded_at = time.monotonic()
    metrics.upkeep_age.labels(job=job.value).set_function(lambda: time.monotonic() - succeeded_at)
    last_success = metrics.upkeep_last_success.labels(job=job.value)
    while True:
        began = time.monotonic()
        try:
            await work()
        except errors.AimeshError as error:
            _log.warning("background work failed", job=job.value, reason=error.message)
        except database.Refusal as error:
            # Its words may quote a row.
            _log.warning("background work failed", job=job.value, reason=type(error).__name__)
        else:
            succeeded_at = time.monotonic()
            last_success.set_to_current_time()
        await asyncio.sleep(max(seconds, _SHARE * (time.monotonic() - began)))
