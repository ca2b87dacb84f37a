"""Jobs and lines of many tenants in a real PostgreSQL: whose turn it is, and what lost or deleted ones leave."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import msgspec
import pytest

from features.jobs.contract import JobKind, JobState
from features.jobs.gateway.rules.batch_input import NewLine
from features.jobs.gateway.store import ClaimedLine, JobStore, LineRetry, NewJob
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.facts.upstream_prices import TargetHold
from services.gateway.store import GatewayStore
from shared import context
from shared.api.auth import Principal
from shared.stores.database import Database
from shared.types import MicroCredits, ModelName, Tier, UserId, UserRole
from tests.features.jobs.gateway.moves import move_all
from tests.services.gateway.billing.test_ledger_store import Books, new_request

ADA = Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)
BOB = msgspec.structs.replace(ADA, user_id=UserId(UUID(int=2)), username="bob")
ECHO = ModelName("echo")


@dataclass
class Site:
    jobs: JobStore
    books: Books
    database: Database

    async def order(self, owner: Principal = ADA, *, lines: int = 0, model: ModelName = ECHO) -> UUID:
        """Order a batch; it begins if it has lines."""
        new = NewJob(
            id=context.new_request_id(),
            owner=owner,
            kind=JobKind.BATCH,
            endpoint="/v1/completions",
            seed=1,
            seconds=3600,
            kept_seconds=3600,
        )
        await self.jobs.create(new)
        if lines:
            await self.jobs.add_lines(new.id, [NewLine(line, f"c{line}", line, 1, b"") for line in range(lines)])
            await self.jobs.begin(new.id, lines, model, None)
        return new.id

    async def claim(self, lines: int) -> tuple[ClaimedLine, ...]:
        return await self.jobs.claim(ECHO, [new_request() for _ in range(lines)], "one")


@pytest.fixture
async def site(plain_url: str) -> AsyncIterator[Site]:
    async with store.opened(plain_url) as opened:
        ledger, requests = LedgerStore(opened), GatewayStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        yield Site(JobStore(opened, requests), Books(requests, ledger, plain_url), opened)


async def test_tenants_take_turns_however_many_jobs_they_have(site: Site) -> None:
    first = [await site.order(lines=2) for _ in range(3)]
    of_bob = await site.order(BOB, lines=2)
    claimed = [(await site.claim(1))[0].job_id for _ in range(5)]
    assert claimed == [first[0], of_bob, first[0], of_bob, first[1]]


async def test_a_claim_reads_few_of_many_lines(site: Site, plain_url: str) -> None:
    await site.order(lines=5000)
    connection = await asyncpg.connect(plain_url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    try:
        for _ in range(2):
            async with connection.transaction():
                requests = [new_request() for _ in range(32)]
                assert len(await connection.fetch("SELECT * FROM claim_lines($1, $2, 'one', 60, 3, false)", ECHO, requests)) == 32
                read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'job_lines'"
                assert await connection.fetchval(read) < 500
            await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def test_a_tenant_with_many_batches_lets_those_of_others_be_validated(site: Site) -> None:
    for _ in range(40):
        await site.order()
    of_bob = await site.order(BOB)
    taken = [await site.jobs.take(JobState.VALIDATING, "one") for _ in range(30)]
    assert of_bob in {job.id for job in taken if job is not None}


async def test_of_more_models_than_are_listed_none_waits_forever(site: Site) -> None:
    for number in range(3):
        await site.order(lines=1, model=ModelName(f"m{number}"))
    listed = [await site.jobs.list_models(2) for _ in range(40)]
    assert {len(models) for models in listed} == {2}
    assert {model for models in listed for model, _ in models} == {"m0", "m1", "m2"}


async def test_an_attempt_without_a_result_gives_back_what_it_held_at_a_target(site: Site) -> None:
    job = await site.order(lines=1)
    (line,) = await site.claim(1)
    hold = TargetHold("assistant", "paid", ECHO, MicroCredits(400), MicroCredits(500))
    await site.books.reserve(ADA.user_id, request=line.request_id, tokens=7, holds=(hold,), job=job)
    assert await site.books.requests.read_spending() == {("assistant", "paid"): (0, 400)}
    await site.jobs.requeue([LineRetry(line.request_id, 0.0)])
    assert await site.books.requests.read_spending() == {("assistant", "paid"): (0, 0)}
    report = await site.books.report()
    assert (report.reserved_drift_micro, report.findings) == (0, ())


async def test_a_lost_attempt_ends_before_an_older_gateway_bills_it(site: Site) -> None:
    """Releases without jobs settle each reservation whose lease has been over for 30 s, by the receipt of its worker."""
    job = await site.order(lines=1)
    (line,) = await site.claim(1)
    await site.books.reserve(ADA.user_id, request=line.request_id, tokens=7, job=job, lease=1)
    await site.books.execute("UPDATE job_lines SET lease_until = now() - interval '11 s'")
    await site.jobs.give_back_lost(10.0)
    assert await site.books.account(ADA.user_id) == (0, 0)
    assert [line.state for line in await site.jobs.results(job, -1, 10)] == ["queued"]


async def test_an_extension_waits_for_no_line_that_is_being_ended(site: Site) -> None:
    await site.order(lines=2)
    first, second = await site.claim(2)
    async with site.database.transaction() as ending:
        await ending.run("requeue_lines", [first.request_id], [0.0], [False])
        assert await site.jobs.extend([first.request_id, second.request_id], "one") == {second.request_id}


async def test_a_deleted_job_is_not_seen_again_when_it_ends_after_its_window(site: Site) -> None:
    job = await site.order(lines=1)
    await site.books.execute("UPDATE jobs SET expires_at = now() - interval '1 h', delete_at = now() + interval '1 h'")
    await move_all(site.jobs)
    await site.jobs.forget(job)
    assert await site.jobs.find(ADA.tenant_id, job) is None
    await site.jobs.end(job)
    assert await site.jobs.find(ADA.tenant_id, job) is None
