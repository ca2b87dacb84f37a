"""After a gateway dies, the ledger knows which worker ran a request, and only that worker's receipt counts."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest
from msgspec import structs

from services.gateway import store
from services.gateway.billing import ledger, orphan_settlement
from services.gateway.billing.ledger import Ledger, WorkerClaims
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import NO_PLAN, CostBounds, OpenReservation, ReservationRequest, WorkerClaim
from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.upstream_prices import TargetSpending, UpstreamPrice, UpstreamPrices
from services.gateway.store import GatewayStore
from shared import errors
from shared.api.auth import Budget
from shared.api.ledger import ModelPrice
from shared.node import lifecycle
from shared.telemetry import Metrics
from shared.types import MicroCredits, ModelName, NodeId, RequestId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.billing.test_ledger_store import priced
from tests.services.gateway.billing.test_worker_receipts import Mesh, Worker, make_receipt
from tests.services.gateway.fakes import OWNER, USER, FixedConfig, node_id
from tests.testnet import until

WANTED = ReservationRequest(
    request_id=RequestId(uuid4()), owner=USER, key_id=None, model=ModelName("m"), price=priced(), allowance_weight=1, prompt_tokens=10,
    max_tokens=4096, least_tokens=16, answers=1, seconds=0, spending=NO_PLAN,
)  # fmt: skip


def claim(request: RequestId, worker: NodeId, delivered: int = 0) -> WorkerClaim:
    return WorkerClaim(request, worker, delivered, ModelName("m"), 1, None)


class BillingStores:
    def __init__(self, opened: store.database.Database, url: str) -> None:
        self.requests, self.ledger, self.url = GatewayStore(opened), LedgerStore(opened), url

    async def reserve(self, owner: UserId = USER, price: Price = WANTED.price) -> RequestId:
        request = RequestId(uuid4())
        wanted = structs.replace(WANTED, request_id=request, owner=owner, price=price)
        await self.ledger.reserve([wanted], gateway=node_id(9), lease_seconds=-300)
        return request

    @asynccontextmanager
    async def gateway(self, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Ledger]:
        running = Ledger(self.ledger, FixedConfig(), node_id(9), Metrics("gateway"), clock, items=fakes.new_items())
        async with (
            fakes.new_recorder(self.requests).running() as recorder,
            running.running(recorder, self.requests.write_requests, fakes._no_receipts),
        ):
            yield running

    async def sweep(self, mesh: Mesh) -> None:
        """Settle what lost gateways left, as another one does."""
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        await connection.execute("UPDATE reservations SET lease_until = now() - interval '1 h' WHERE state = 'reserved'")
        await connection.close()
        clock = itertools.count(0, ledger.HEARTBEAT_SECONDS)
        async with self.gateway(lambda: next(clock)) as other:
            await other.heartbeat([])
            await other.sweep(self.requests.write_requests, lambda overdue: mesh.of(*overdue))

    async def logged(self) -> dict[RequestId, tuple[object, ...]]:
        """Return the model, tokens and cost of each request's row."""
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        rows = await connection.fetch("SELECT id, model_used, completion_tokens, cost_micro FROM request_logs")
        await connection.close()
        return {row["id"]: tuple(row)[1:] for row in rows}

    async def overdue(self) -> dict[RequestId, OpenReservation]:
        return {one.request_id: one for one in await self.ledger.list_overdue(grace_seconds=0, most=100)}


@pytest.fixture
async def stores(plain_url: str) -> AsyncIterator[BillingStores]:
    async with store.opened(plain_url) as opened:
        stores = BillingStores(opened, plain_url)
        await stores.ledger.ensure_default_price(0, 1_000_000)
        yield stores


async def test_claims_keep_their_order_and_delivered_tokens(stores: BillingStores) -> None:
    request, other = await stores.reserve(), await stores.reserve()
    assert await stores.ledger.record_claims([claim(request, node_id(1))]) == {request}
    assert await stores.ledger.record_claims([claim(request, node_id(2), 7), claim(other, node_id(1))]) == {request, other}
    found = (await stores.overdue())[request]
    assert (found.workers, found.delivered_before) == ((node_id(1), node_id(2)), 7)
    assert found.claimed_at is not None
    assert abs((found.claimed_at - datetime.now(UTC)).total_seconds()) < 60


async def test_a_lost_gateways_request_costs_the_price_of_the_target_that_served_it(stores: BillingStores) -> None:
    """The ledger reserves the price of the most expensive target; a cheaper one may serve the request."""
    await stores.ledger.add_price(ModelPrice(ModelName("cheap"), MicroCredits(0), MicroCredits(100_000)))
    cheap = next(price for price in await stores.ledger.list_prices() if price.price.model == "cheap")
    request = await stores.reserve()
    worker = Worker(make_receipt(request, completion=40))
    used = RouteUse("assistant", 3, "local", "next")
    await stores.ledger.record_claims([WorkerClaim(request, node_id(1), 0, ModelName("m"), 1, replace(used, target="local"))])
    await stores.ledger.record_claims([WorkerClaim(request, worker.key.id, 0, ModelName("cheap"), cheap.id, used, "acme")])
    found = (await stores.overdue())[request]
    assert (found.model, found.price_id, found.route, found.provider) == ("cheap", cheap.id, used, "acme")
    receipts = await Mesh(worker).of(found)
    now, upstream = datetime.now(UTC), UpstreamPrices({ModelName("cheap"): UpstreamPrice(0, 0, 2_000_000, 5)})
    row = orphan_settlement.build_row(found, cheap, receipts[request], most_seconds=3600, now=now, upstream=upstream)
    assert row is not None
    assert (row.model_used, row.cost_micro, row.route) == ("cheap", 4, used)
    assert (row.provider, row.attempts, row.spending) == ("acme", 2, (TargetSpending("assistant", "next", MicroCredits(85)),))
    await stores.requests.write_requests([row])
    connection = await asyncpg.connect(stores.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    logged = await connection.fetchrow("SELECT route, route_version, variant, target, cost_micro, upstream_micro FROM request_logs")
    await connection.close()
    assert logged is not None
    assert tuple(logged) == ("assistant", 3, "local", "next", 4, 85)
    assert (await stores.ledger.read_account(USER, NO_PLAN)).balance_micro == -4


async def test_a_claim_skips_a_request_that_is_being_settled(stores: BillingStores) -> None:
    settling, running = await stores.reserve(), await stores.reserve()
    claims = [claim(settling, node_id(1)), claim(running, node_id(1))]
    connection = await asyncpg.connect(stores.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    async with connection.transaction():
        await connection.execute("SELECT FROM reservations WHERE request_id = $1 FOR UPDATE", settling)
        assert await stores.ledger.record_claims(claims) == {running}
    await connection.close()
    assert await stores.ledger.record_claims(claims[:1]) == {settling}


async def test_another_workers_receipt_bills_nobody(stores: BillingStores) -> None:
    """Another worker's receipt once turned 5 tokens into 4,096."""
    request, bait = await stores.reserve(), await stores.reserve()
    honest, liar = Worker(make_receipt(request, completion=5)), Worker(make_receipt(request, completion=4096))
    mesh = Mesh(honest, liar)
    await stores.ledger.record_claims([claim(request, honest.key.id), claim(bait, liar.key.id)])
    overdue = await stores.overdue()
    price = await stores.ledger.find_price(1)
    assert price is not None
    receipts = await mesh.of(*overdue.values())
    rows = [
        orphan_settlement.build_row(one, price, receipts.get(one.request_id), most_seconds=3600, now=datetime.now(UTC))
        for one in overdue.values()
    ]
    await stores.requests.write_requests([row for row in rows if row is not None])
    account = await stores.ledger.read_account(USER, NO_PLAN)
    assert (account.balance_micro, account.reserved_micro) == (-5, 0)
    assert mesh.struck == [liar.key.id]


class Recorded:
    """A store that can be unavailable or have locked rows."""

    def __init__(self) -> None:
        self.claims: list[WorkerClaim] = []
        self.away = False
        self.locked: set[RequestId] = set()
        self.tries = 0

    async def record(self, claims: Sequence[WorkerClaim]) -> set[RequestId]:
        self.tries += 1
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        free = [claim for claim in claims if claim.request_id not in self.locked]
        self.claims += free
        return {claim.request_id for claim in free}


async def test_each_claim_is_recorded_once_and_in_order_despite_locks_and_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_RETRY_SECONDS", 0.01)
    recorded = Recorded()
    claims = WorkerClaims(recorded.record)
    one, two = RequestId(uuid4()), RequestId(uuid4())
    recorded.away, recorded.locked = True, {two}
    async with lifecycle.background() as tasks:
        tasks.create_task(claims.write())
        for request, worker in ((one, node_id(1)), (two, node_id(1)), (one, node_id(2))):
            claims.add(claim(request, worker))
        await until(lambda: recorded.tries > 1)
        recorded.away = False
        await until(lambda: len(recorded.claims) == 2)
        recorded.locked.clear()
        await until(lambda: len(recorded.claims) == 3)
    assert [found for found in recorded.claims if found.request_id == one] == [claim(one, node_id(1)), claim(one, node_id(2))]


async def test_an_ended_request_needs_no_claim() -> None:
    recorded = Recorded()
    claims = WorkerClaims(recorded.record)
    ended, running = RequestId(uuid4()), RequestId(uuid4())
    async with lifecycle.background() as tasks:
        claims.add(claim(ended, node_id(1)))
        tasks.create_task(claims.write())
        await asyncio.sleep(0)
        claims.forget(ended)
        claims.forget(ended)
        claims.add(claim(running, node_id(1)))
        await until(lambda: recorded.claims)
    assert recorded.claims == [claim(running, node_id(1))]


async def test_a_lost_gateways_batch_request_costs_the_price_of_batches(stores: BillingStores) -> None:
    """40 tokens for 100 micro-credits each, and for 25 behind live requests."""
    await stores.ledger.add_price(ModelPrice(ModelName("m"), MicroCredits(0), MicroCredits(100_000_000), batch_percent=25))
    price = next(price for price in await stores.ledger.list_prices() if price.price.model == "m")
    live, batch = await stores.reserve(price=price), await stores.reserve(price=price)
    worker = Worker(make_receipt(live, completion=40), make_receipt(batch, completion=40))
    for request, is_batch in ((live, False), (batch, True)):
        await stores.ledger.record_claims([WorkerClaim(request, worker.key.id, 0, ModelName("m"), price.id, None, is_batch=is_batch)])
    await stores.sweep(Mesh(worker))
    assert await stores.logged() == {live: ("m", 40, 4000), batch: ("m", 40, 1000)}
    account = await stores.ledger.read_account(USER, NO_PLAN)
    assert (account.balance_micro, account.reserved_micro) == (-5000, 0)


async def test_a_cheaper_model_answers_in_full_before_a_dearer_one_is_clamped(stores: BillingStores) -> None:
    """1,000 tokens at 9 micro-credits are more than the budget of 5,000, which would pay for 555 of them; at 2, all fit."""
    for model, micro in (("dear", 9_000_000), ("cheap", 2_000_000)):
        await stores.ledger.add_price(ModelPrice(ModelName(model), MicroCredits(0), MicroCredits(micro)))
    request, caller = RequestId(uuid4()), structs.replace(OWNER, budget=Budget(MicroCredits(5000)))
    worker = Worker(make_receipt(request, completion=900))
    bounds = CostBounds(prompt_tokens={ModelName("dear"): 10, ModelName("cheap"): 10}, max_tokens=1000, answers=1, seconds=0)
    async with stores.gateway() as lost:
        held = await lost.reserve(caller, request, bounds)
    assert (set(held.prices), held.max_tokens, held.clamped) == ({"cheap"}, 1000, False)
    assert (await stores.ledger.read_account(USER, NO_PLAN)).reserved_micro == 2000
    cheap = held.prices[ModelName("cheap")].id
    await stores.ledger.record_claims([WorkerClaim(request, worker.key.id, 0, ModelName("cheap"), cheap, None)])
    await stores.sweep(Mesh(worker))
    assert await stores.logged() == {request: ("cheap", 900, 1800)}
