"""Background jobs are repeated even if they fail, and report when they last succeeded."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from shared import errors
from shared.background import tasks
from shared.telemetry import Metrics
from tests.services.gateway.log_lines import Lines


class Rounds:
    """A job with the given outcomes; it hangs after the last one."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends, self.over = list(ends), asyncio.Event()

    async def work(self) -> None:
        if not self.ends:
            self.over.set()
            await asyncio.Event().wait()
        if (error := self.ends.pop(0)) is not None:
            raise error


async def run(work: Callable[[], Awaitable[None]], over: asyncio.Event, metrics: Metrics) -> None:
    task = asyncio.create_task(background_jobs.repeat(UpkeepJob.ROLL, 0, work, metrics))
    async with asyncio.timeout(30):
        await over.wait()
    task.cancel()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(errors.Unavailable("PostgreSQL does not answer"), id="PostgreSQL is down"),
        pytest.param(asyncpg.CheckViolationError("a row of somebody"), id="PostgreSQL refuses"),
    ],
)
async def test_a_failed_job_is_repeated_and_keeps_its_last_success(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, lines = Metrics("gateway"), Lines(monkeypatch)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"ai_platform_upkeep_{name}", {"job": "roll"})

    failing = Rounds(error, error)
    await run(failing.work, failing.over, metrics)
    assert value("last_success_timestamp_seconds") == 0, "never yet"
    age = value("age_seconds")
    assert age is not None
    assert age > 0
    assert len(lines.of("background work failed")) == 2
    assert "a row of somebody" not in str(lines.of("background work failed"))
    working = Rounds(None, error)
    await run(working.work, working.over, metrics)
    first = value("last_success_timestamp_seconds")
    assert first is not None
    assert first > 0
    assert len(lines.of("background work failed")) == 3


async def test_a_bug_ends_a_round_alone_and_the_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, counted = Lines(monkeypatch), list[str]()
    shown = tasks.FailingTasks(counted.append)
    tasks.failing.set(shown)
    job = Rounds(KeyError("a secret"))
    await run(job.work, job.over, Metrics("gateway"))
    assert (shown.names(), counted) == (["roll"], ["roll"])
    assert "KeyError at test_background_jobs.py" in lines.of("background work failed")[0]
    assert "secret" not in lines.of("background work failed")[0]


@pytest.mark.parametrize(("took", "pause"), [(0.0, 60.0), (3.0, 60.0), (10.0, 200.0), (900.0, 3600.0)])
def test_the_pause_grows_with_the_duration_up_to_an_hour(took: float, pause: float) -> None:
    assert background_jobs.pause_seconds(60.0, took) == pause
