"""The runner of jobs on a real PostgreSQL, with an application that answers as a test wants."""

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from features.jobs.contract import JobKind, JobState
from features.jobs.gateway import runner
from features.jobs.gateway.job_metrics import JobMetrics
from features.jobs.gateway.rules import line_results
from features.jobs.gateway.rules.batch_input import NewLine
from features.jobs.gateway.runner import BatchCapacity, JobRunner
from features.jobs.gateway.store import Job, JobStore, NewJob, StoredLine
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.facts import line_run
from services.gateway.store import GatewayStore
from shared import errors
from shared.api.auth import IdentifyOwner, Principal
from shared.telemetry import Metrics
from shared.timing.backoff import Backoff
from shared.types import ModelName, Tier, UserId, UserRole
from tests import stopwatch
from tests.features.jobs.gateway.moves import move_all
from tests.services.gateway import fakes
from tests.services.gateway.billing.test_ledger_store import Books, row

ADA = Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)
ECHO = ModelName("echo")
SECRET = "s" * 32
COST = 7


#: Of 8 slots.
ROOM = BatchCapacity(8, waits_live=False)


async def until(condition: Callable[[], Any], *, seconds: float = 20) -> None:
    deadline = stopwatch.now() + stopwatch.patience(seconds)
    while not (await found if inspect.isawaitable(found := condition()) else found):
        assert stopwatch.now() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


class Inputs:
    async def read(self, _job: Job, line: Any) -> bytes:
        return b'{"line": %d}' % line.line


@dataclass
class Site:
    jobs: JobStore
    books: Books
    #: How each call of a line ends: None succeeds.
    fail: Callable[[int, int], errors.AimeshError | None] = lambda _line, _call: None
    rights: Callable[[], Principal] = lambda: ADA
    room: BatchCapacity | None = ROOM
    #: Of each line.
    calls: Counter[int] = field(default_factory=Counter)
    looks: int = 0
    running: int = 0
    most_running: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    #: When it is set, lines wait for the gate.
    holds: bool = False

    async def app(self, _scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        run = line_run.current.get()
        assert run is not None
        number = msgspec.json.decode((await receive())["body"])["line"]
        self.calls[number] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.books.reserve(ADA.user_id, request=run.request_id, tokens=COST)
            if self.holds:
                await self.gate.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        error = run.failure = self.fail(number, self.calls[number])
        status = 200 if error is None else error.status
        if error is None:
            run.add(row(ADA.user_id, run.request_id, COST))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer %d" % number if error is None else b"error"})

    def find_capacity(self, _model: ModelName) -> BatchCapacity | None:
        self.looks += 1
        return self.room

    async def identify(self, owner: IdentifyOwner) -> Principal:
        assert owner == IdentifyOwner(ADA.user_id)
        return self.rights()

    async def order(self, lines: int, *, live: bool = False) -> UUID:
        new = NewJob(
            id=uuid4(), owner=ADA, kind=JobKind.BATCH, endpoint="/v1/completions", seed=1, seconds=3600, kept_seconds=7200, is_live=live
        )
        await self.jobs.create(new)
        await self.jobs.add_lines(new.id, [NewLine(line, f"c{line}", 0, 1, b"") for line in range(lines)])
        assert await self.jobs.begin(new.id, lines, ECHO, None)
        return new.id

    @asynccontextmanager
    async def run(self, name: str = "one") -> AsyncIterator[JobRunner]:
        made = JobRunner(
            self.jobs, self.app, Inputs(), self.identify, fakes.new_items(), find_capacity=self.find_capacity,  # type: ignore[arg-type]
            metrics=JobMetrics(self.jobs, Metrics("gateway")), name=name, on_ended=lambda: None, secret=SECRET, draining=asyncio.Event(),
        )  # fmt: skip
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def ended(self, job: UUID, seconds: float = 20) -> Job:
        async def is_over() -> bool:
            await move_all(self.jobs)
            found = await self.jobs.read(job)
            return found is not None and found.state is JobState.FINALIZING

        await until(is_over, seconds=seconds)
        found = await self.jobs.read(job)
        assert found is not None
        return found

    async def lines(self, job: UUID) -> tuple[StoredLine, ...]:
        return await self.jobs.results(job, -1, 1000)


@pytest.fixture
async def site(plain_url: str) -> AsyncIterator[Site]:
    async with store.opened(plain_url) as opened:
        ledger, requests = LedgerStore(opened), GatewayStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        yield Site(JobStore(opened, requests), Books(requests, ledger, plain_url))


async def test_each_line_is_answered_once_and_paid_once(site: Site) -> None:
    job = await site.order(100)
    async with site.run("one"), site.run("two"):
        found = await site.ended(job)
    assert (found.outcome, found.done, found.failed, found.cost_micro) == (JobState.COMPLETED, 100, 0, 100 * COST)
    assert site.calls == Counter(range(100))
    lines = await site.lines(job)
    plain = [line_results.unseal(line.result or b"", ADA.tenant_id, job, line.line, SECRET) for line in lines]
    assert plain == [b"answer %d" % number for number in range(100)]
    assert await site.books.account(ADA.user_id) == (-100 * COST, 0)


async def test_a_line_that_no_worker_takes_is_tried_again_and_a_bad_one_fails_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.jobs.rules.retry_rules._ASIDE_SECONDS", 0.0)
    ends = {
        0: [errors.NotReachable("no worker")],
        1: [errors.BadRequest("no")],
        2: [errors.ResourceUnavailable("waited", retry_after_seconds=0.01)] * 4,
    }
    site.fail = lambda line, call: next(iter(ends.get(line, [])[call - 1 : call]), None)
    job = await site.order(4)
    async with site.run():
        found = await site.ended(job)
    assert (found.done, found.failed) == (3, 1)
    assert site.calls == {0: 2, 1: 1, 2: 5, 3: 1}
    failed = (await site.lines(job))[1]
    assert (failed.status_code, failed.error_code) == (400, "bad_request")


async def test_a_line_that_raises_anything_ends_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.jobs.rules.retry_rules._BACKOFF", Backoff(first_seconds=0.0, longest_seconds=0.0))

    def fail(line: int, _call: int) -> errors.AimeshError | None:
        if line == 1:
            raise ValueError("an odd line")
        return None

    site.fail = fail
    job = await site.order(3)
    async with site.run():
        found = await site.ended(job)
    assert (found.done, found.failed) == (2, 1)
    failed = (await site.lines(job))[1]
    assert failed.error_code == "internal"


async def test_without_credits_a_job_waits_and_says_so(site: Site) -> None:
    has_credits = False
    site.fail = lambda _line, _call: None if has_credits else errors.BudgetExhausted("nothing left")
    job = await site.order(3)
    async with site.run() as running:

        async def waits() -> bool:
            found = await site.jobs.read(job)
            return found is not None and found.waiting == "no credits"

        await until(waits)
        await until(lambda: not running.running)
        has_credits = True
        assert (await site.lines(job))[0].state == "queued"
        await site.books.execute("UPDATE gateway.job_lines SET not_before = now()")
        await site.books.execute("UPDATE gateway.jobs SET waits_until = now()")
        found = await site.ended(job)
    assert (found.done, found.waiting) == (3, None)


@pytest.mark.parametrize("error", [errors.NotAuthenticated("this API key was revoked"), errors.Unavailable("auth is away")])
async def test_rights_are_asked_for_again(site: Site, error: errors.AimeshError) -> None:
    def refuse() -> Principal:
        raise error

    site.rights = refuse
    job = await site.order(3)
    async with site.run():

        async def says_why() -> bool:
            found = await site.jobs.read(job)
            return found is not None and found.waiting == error.message

        await until(says_why)
        found = await site.jobs.read(job)
        assert found is not None
        assert found.state is (JobState.CANCELLING if isinstance(error, errors.NotAuthenticated) else JobState.IN_PROGRESS)
        assert not site.calls
        site.rights = lambda: ADA
        ended = await site.ended(job)
    if isinstance(error, errors.NotAuthenticated):
        await site.jobs.end(job)
        found = await site.jobs.read(job)
        assert found is not None
        assert (found.state, found.waiting) == (JobState.CANCELLED, "this API key was revoked")
    assert ended.outcome is (JobState.CANCELLED if isinstance(error, errors.NotAuthenticated) else JobState.COMPLETED)


async def test_a_cancel_ends_running_lines_without_pay(site: Site) -> None:
    site.holds = True
    job = await site.order(20)
    async with site.run() as running:
        await until(lambda: site.running >= 8)
        await site.jobs.cancel(job)
        await until(lambda: not site.running and not running.running)
        found = await site.ended(job)
    assert (found.outcome, found.done) == (JobState.CANCELLED, 0)
    assert {line.state for line in await site.lines(job)} == {"cancelled"}
    assert await site.books.account(ADA.user_id) == (0, 0)


async def test_a_gateway_that_stops_gives_its_lines_back_at_once(site: Site) -> None:
    site.holds = True
    job = await site.order(5)
    async with site.run():
        await until(lambda: site.running == 5)
    assert {line.state for line in await site.lines(job)} == {"queued"}
    assert await site.books.account(ADA.user_id) == (0, 0)
    site.holds = False
    async with site.run("two"):
        assert (await site.ended(job)).done == 5


async def test_lines_of_a_lost_gateway_are_run_again_and_its_answers_count_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped for longer than its leases, and goes on."""
    monkeypatch.setattr(runner, "EXTEND_SECONDS", math.inf)
    site.holds = True
    job = await site.order(3)
    async with site.run("stopped"):
        await until(lambda: site.running == 3)
        await site.books.execute("UPDATE gateway.job_lines SET lease_until = now() - interval '1 s'")
        async with site.run("other"):
            await until(lambda: site.running == 6)
            site.gate.set()
            found = await site.ended(job)
    assert (found.done, found.cost_micro) == (3, 3 * COST)
    assert site.calls == {0: 2, 1: 2, 2: 2}


async def test_while_live_requests_wait_few_lines_begin(site: Site) -> None:
    site.room = BatchCapacity(0, waits_live=True)
    job = await site.order(3)
    async with site.run():
        await until(lambda: site.looks >= 5)
        assert not site.calls
        site.room = BatchCapacity(1, waits_live=False)
        assert (await site.ended(job)).done == 3
    assert site.most_running <= 5


async def test_live_jobs_need_no_idle_worker(site: Site) -> None:
    site.room = None
    job = await site.order(3, live=True)
    async with site.run():
        assert (await site.ended(job)).done == 3


async def test_an_endpoint_that_says_nothing_leaves_no_result(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.jobs.rules.retry_rules._MAX_FAULTS", 1)

    async def say_nothing(*_: Any) -> None: ...

    monkeypatch.setattr(site, "app", say_nothing)
    job = await site.order(1)
    async with site.run():
        assert (await site.ended(job)).failed == 1
    (line,) = await site.lines(job)
    assert (line.result, line.status_code, line.error_code) == (None, None, "internal")


async def test_large_results_are_written_a_few_at_a_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL must take each statement in time, and none of more than 1 GB."""
    finish, written = JobStore.finish, list[int]()

    async def count(self: JobStore, results: Any) -> Any:
        written.append(len(results))
        return await finish(self, results)

    monkeypatch.setattr(JobStore, "finish", count)
    monkeypatch.setattr(runner, "_MAX_WRITTEN_BYTES", 1)
    job = await site.order(5)
    async with site.run():
        assert (await site.ended(job)).done == 5
    assert written == [1] * 5
