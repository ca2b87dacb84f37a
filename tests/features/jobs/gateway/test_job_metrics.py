"""What operators see of jobs, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from features.jobs.contract import JobKind
from features.jobs.gateway.job_metrics import JobMetrics
from features.jobs.gateway.rules.batch_input import NewLine
from features.jobs.gateway.store import JobStore, NewJob
from features.jobs.instruments import LineOutcome
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.store import GatewayStore
from shared.api.auth import Principal
from shared.telemetry import Metrics, answer_metrics
from shared.types import ModelName, Tier, UserId, UserRole
from tests.features.jobs.gateway.moves import move_all
from tests.services.gateway.billing.test_ledger_store import Books, new_request

ADA = Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)
ECHO, OTHER = ModelName("echo"), ModelName("other")


@dataclass
class Gateway:
    jobs: JobStore
    books: Books
    metrics: Metrics
    job_metrics: JobMetrics

    async def order(self, lines: int, model: ModelName = ECHO, *, age: float = 0, left: float = 3600) -> UUID:
        """Return a job that began so many seconds ago and expires in as many."""
        new = NewJob(id=uuid4(), owner=ADA, kind=JobKind.BATCH, endpoint="/v1/completions", seed=1, seconds=left, kept_seconds=7200)
        await self.jobs.create(new)
        await self.jobs.add_lines(new.id, [NewLine(line, f"c{line}", 0, 1, b"") for line in range(lines)])
        assert await self.jobs.begin(new.id, lines, model, 1)
        await self.execute("UPDATE jobs SET in_progress_at = now() - make_interval(secs => $1) WHERE id = $2", age, new.id)
        return new.id

    async def execute(self, sql: str, *args: object) -> None:
        await self.books.execute(sql.replace("UPDATE ", "UPDATE gateway."), *args)

    async def show(self) -> dict[str, float]:
        """Return the gauges as they are exported, without the common prefix."""
        await self.job_metrics.measure()
        return {
            line.split()[0].removeprefix("ai_platform_"): round(float(line.split()[1]))
            for line in self.metrics.render().splitlines()
            if line.startswith("ai_platform_job") and "_total" not in line
        }


@pytest.fixture
async def gateway(plain_url: str) -> AsyncIterator[Gateway]:
    async with store.opened(plain_url) as opened:
        ledger, requests = LedgerStore(opened), GatewayStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        jobs, metrics = JobStore(opened, requests), Metrics("gateway")
        gateway = Gateway(jobs, Books(requests, ledger, plain_url), metrics, JobMetrics(jobs, metrics))
        await gateway.books.execute("TRUNCATE job_lines, jobs")
        yield gateway


async def test_open_jobs_and_lines_are_shown(gateway: Gateway) -> None:
    await gateway.order(5, age=100)
    ended = await gateway.order(1, OTHER)
    assert len(await gateway.jobs.claim(ECHO, [new_request(), new_request()], "one")) == 2
    assert await gateway.show() == {
        'jobs{kind="batch",state="in_progress"}': 2,
        'job_lines_open{model="echo",state="queued"}': 3,
        'job_lines_open{model="echo",state="running"}': 2,
        'job_lines_open{model="other",state="queued"}': 1,
        'job_lines_open{model="other",state="running"}': 0,
        'job_oldest_seconds{model="echo"}': 100,
        'job_oldest_seconds{model="other"}': 0,
        'job_needed_lines_per_second{model="echo"}': 0,
        'job_needed_lines_per_second{model="other"}': 0,
    }
    assert 'ai_platform_job_lines_total{model="other",result="done"} 0.0' in gateway.metrics.render()
    # What has ended is no longer there.
    await gateway.jobs.cancel(ended)
    await move_all(gateway.jobs)
    await gateway.jobs.end(ended)
    assert not [name for name in await gateway.show() if "other" in name]


async def test_line_of_a_dead_gateway_waits(gateway: Gateway) -> None:
    await gateway.order(1, age=1000)
    await gateway.jobs.claim(ECHO, [new_request()], "one")
    assert (await gateway.show())['job_oldest_seconds{model="echo"}'] == 0
    await gateway.execute("UPDATE job_lines SET lease_until = now() - interval '1 s'")
    shown = await gateway.show()
    assert (shown['job_oldest_seconds{model="echo"}'], shown['job_lines_open{model="echo",state="running"}']) == (1000, 0)


async def test_job_without_credits_is_not_late(gateway: Gateway) -> None:
    job = await gateway.order(1000, age=3600, left=100)
    await gateway.jobs.hold(job, "no worker serves echo", 0)
    assert (await gateway.show())['job_oldest_seconds{model="echo"}'] == 3600
    await gateway.jobs.hold(job, "no credits", 300)
    shown = await gateway.show()
    assert (shown['job_oldest_seconds{model="echo"}'], shown['job_needed_lines_per_second{model="echo"}']) == (0, 0)
    # It is tried again: its time begins now.
    await gateway.execute("UPDATE jobs SET waits_until = now() - interval '5 s'")
    assert (await gateway.show())['job_oldest_seconds{model="echo"}'] == 5


async def test_lines_that_must_end_first_count(gateway: Gateway) -> None:
    await gateway.order(7200, age=2000, left=7200)
    needed = 'job_needed_lines_per_second{model="echo"}'
    assert (await gateway.show())[needed] == 1
    # A young job is not judged, but it delays the other one.
    await gateway.order(7200, age=60, left=3600)
    assert (await gateway.show())[needed] == 2


async def test_names_of_models_are_bounded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a route for `gpt-*`, anybody may make names up."""
    monkeypatch.setattr(answer_metrics, "MAX_MODELS", 1)
    gateway.job_metrics.end(ECHO, LineOutcome.DONE)
    for number, age in ((1, 50), (2, 70)):
        await gateway.order(number, ModelName(f"gpt-{number}"), age=age)
        gateway.job_metrics.end(ModelName(f"gpt-{number}"), LineOutcome.DONE)
    shown = await gateway.show()
    assert (shown['job_lines_open{model="_OTHER",state="queued"}'], shown['job_oldest_seconds{model="_OTHER"}']) == (3, 70)
    assert 'job_lines_total{model="_OTHER",result="done"} 2.0' in gateway.metrics.render()
    assert "gpt" not in gateway.metrics.render()


async def test_lines_are_counted_and_timed(gateway: Gateway) -> None:
    gateway.job_metrics.begin(ECHO, datetime.now(UTC) - timedelta(seconds=50))
    gateway.job_metrics.end(ECHO, LineOutcome.DONE, seconds=3)
    gateway.job_metrics.end(ECHO, LineOutcome.EXPIRED, lines=7)
    text = gateway.metrics.render()
    assert 'job_lines_total{model="echo",result="done"} 1.0' in text
    assert 'job_lines_total{model="echo",result="expired"} 7.0' in text
    assert 'job_line_wait_seconds_bucket{le="60.0",model="echo"} 1.0' in text
    assert 'job_line_run_seconds_sum{model="echo"} 3.0' in text
