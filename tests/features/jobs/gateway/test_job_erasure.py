"""Jobs of a tenant that is erased are gone, and stay so while gateways still run their lines; on a real PostgreSQL."""

from uuid import UUID, uuid4

from features.jobs.contract import JobKind
from features.jobs.gateway.rules.batch_input import NewLine
from features.jobs.gateway.store import MAX_ERASED, JobStore, LineResult, NewJob
from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.store import GatewayStore
from shared.api.auth import Principal
from shared.types import Tier, UserId, UserRole
from tests.services.gateway.billing.test_ledger_store import MODEL, Books, new_request, row

ADA = Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)
BOB = Principal(UserId(UUID(int=2)), "bob", UserRole.USER, Tier.FREE)


async def test_running_lines_write_nothing_after_the_erasure(plain_url: str) -> None:
    async with store.opened(plain_url) as opened:
        ledger, requests = LedgerStore(opened), GatewayStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        jobs, books = JobStore(opened, requests), Books(requests, ledger, plain_url)

        async def order(by: Principal) -> UUID:
            new = NewJob(id=uuid4(), owner=by, kind=JobKind.BATCH, endpoint="/v1/completions", seed=1, seconds=3600, kept_seconds=7200)
            await jobs.create(new)
            await jobs.add_lines(new.id, [NewLine(line, f"c{line}", 0, 1, b"") for line in range(2)])
            assert await jobs.begin(new.id, 2, MODEL, 1)
            return new.id

        for _ in range(MAX_ERASED + 1):
            await order(ADA)
        (line,) = await jobs.claim(MODEL, [request := new_request()], "one")
        assert line.request_id == request
        others = await order(BOB)
        await books.reserve(ADA.user_id, request=request, tokens=5)
        await jobs.erase(ADA.tenant_id)
        assert await jobs.page(ADA.tenant_id, None, None, 100) == ()
        assert [job.id for job in await jobs.page(BOB.tenant_id, None, None, 100)] == [others]
        assert await jobs.extend([request], "one") == set()
        result = LineResult(request_id=request, row=row(ADA.user_id, request, 5), result=b"sealed", status_code=200)
        assert await jobs.finish([result]) == set()
        assert await books.log(ADA.user_id) == []
        # Nothing is paid, and what was held is free once the attempt's lease is over.
        await books.execute("UPDATE reservations SET lease_until = now() - interval '1 minute', job_id = gen_random_uuid()")
        await ledger.drop_lost_attempts(grace_seconds=30, most=10)
        assert await books.account(ADA.user_id) == (0, 0)
