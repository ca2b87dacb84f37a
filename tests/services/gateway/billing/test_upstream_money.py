"""The cost of providers' answers: prices, the ceilings of targets, and the sums of both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest
from msgspec import structs

from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits
from services.gateway.facts import upstream_prices
from services.gateway.facts.request_record import ReservationState, RouteUse
from services.gateway.facts.upstream_prices import TargetHold, TargetSpending, UpstreamPrices
from services.gateway.idempotency.idempotency_keys import IdempotentRequest, NewKeyUse, OrphanedKeyUse
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.store import GatewayStore
from shared.api.gateway import InferenceRequest
from shared.api.generation import Usage
from shared.config_documents import UpstreamPriceDocument
from shared.types import MicroCredits, ModelName, RequestId, TenantId, UserId
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books, new_owner, new_request, row

ROUTE = RouteUse("assistant", 1, "api", "api")
PRICE = UpstreamPriceDocument(input="0.15", output=0.6, cached_input="0.075", request="0.001")


def test_prices_are_exact_and_rounded_up() -> None:
    price = upstream_prices.compiled(PRICE)
    assert (price.input_micro_per_million, price.cached_input_micro_per_million) == (150_000, 75_000)
    assert (price.output_micro_per_million, price.request_micro) == (600_000, 1_000)
    assert price.cost(Usage(1_000_000, 1_000_000)) == 150_000 + 600_000 + 1_000
    assert price.cost(Usage(1_000_000, 0, 1_000_000)) == 75_000 + 1_000
    assert price.cost(Usage(1, 0)) == 1 + 1_000, "rounded up"
    assert price.cost(Usage(10, 0, 99)) == 1 + 1_000, "no more can be cached than there is"
    assert upstream_prices.compiled(UpstreamPriceDocument(input=1, output="2")).cached_input_micro_per_million == 1_000_000
    assert [upstream_prices.micro(money) for money in (0.1, "0.1", 0.07, 999_999.999999)] == [100_000, 100_000, 70_000, 999_999_999_999]


def test_unknown_prices_cost_nothing() -> None:
    prices = UpstreamPrices({ModelName("a"): upstream_prices.compiled(PRICE)})
    assert prices.cost(ModelName("b"), Usage(10, 10)) == 0


# --- ceilings -------------------------------------------------------------------------------------------------------------


def hold(target: str = "api", micro: int = 100, ceiling: int = 700) -> TargetHold:
    return TargetHold("assistant", target, ModelName("gpt"), MicroCredits(micro), MicroCredits(ceiling))


class Gateways:
    """Two gateways with one database."""

    def __init__(self, books: list[Books]) -> None:
        self.books = books

    async def reserve(
        self, number: int, *holds: TargetHold, request: RequestId | None = None, owner: UserId | None = None
    ) -> frozenset[str]:
        """Return the targets over their ceilings."""
        books = self.books[number % len(self.books)]
        answer = await books.reserve(owner or new_owner(), tokens=1, request=request, holds=holds)
        assert isinstance(answer, GrantedReservation)
        return answer.over_ceiling

    async def end(self, number: int, request: RequestId, owner: UserId, *spending: TargetSpending, cost: int = 1) -> None:
        ended = structs.replace(row(owner, request, cost), route=ROUTE, provider="acme", attempts=1, spending=spending)
        await self.books[number % len(self.books)].requests.write_requests([ended])

    async def spending(self) -> dict[str, tuple[int, int]]:
        return {target: both for (_, target), both in (await self.books[0].requests.read_spending()).items()}

    async def findings(self, *, full: bool = False) -> tuple[str, ...]:
        return (await self.books[0].ledger.verify(grace_seconds=60, full=full)).findings


@pytest.fixture
async def gateways(plain_url: str) -> AsyncIterator[Gateways]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(store.opened(plain_url)) for _ in range(2)]
        ledgers = [LedgerStore(one) for one in opened]
        await ledgers[0].ensure_default_price(100_000_000, 200_000_000)
        yield Gateways([Books(GatewayStore(one), ledger, plain_url) for one, ledger in zip(opened, ledgers, strict=True)])


def spent(target: str, micro: int) -> TargetSpending:
    return TargetSpending("assistant", target, MicroCredits(micro))


async def test_64_concurrent_requests_never_exceed_a_ceiling(gateways: Gateways) -> None:
    over = await asyncio.gather(*(gateways.reserve(number, hold()) for number in range(64)))
    assert over.count(frozenset()) == 7
    assert await gateways.spending() == {"api": (0, 700)}
    assert await gateways.findings() == ()


async def test_a_request_holds_until_it_ends_and_spends_what_it_cost(gateways: Gateways) -> None:
    ada, request = new_owner(), new_request()
    assert await gateways.reserve(0, hold(micro=600), hold("other", micro=50), request=request, owner=ada) == frozenset()
    assert await gateways.reserve(1, hold(micro=101), hold("other", micro=1)) == {"api"}
    assert await gateways.spending() == {"api": (0, 600), "other": (0, 51)}
    await asyncio.gather(*(gateways.end(number, request, ada, spent("api", 250)) for number in range(16)))
    assert await gateways.spending() == {"api": (250, 0), "other": (0, 1)}, "once, however often it is written"
    assert await gateways.reserve(0, hold(micro=451)) == {"api"}
    assert await gateways.reserve(0, hold(micro=450)) == frozenset()
    assert await gateways.findings(full=True) == ()


async def test_a_repeated_reservation_holds_once(gateways: Gateways) -> None:
    ada, request = new_owner(), new_request()
    for number in range(3):
        assert await gateways.reserve(number, hold(), request=request, owner=ada) == frozenset()
    assert await gateways.spending() == {"api": (0, 100)}
    await gateways.end(0, request, ada)
    await gateways.reserve(0, hold(), hold("other"), request=request, owner=ada)
    assert await gateways.spending() == {"api": (0, 0)}, "an ended request holds nothing again"


async def test_a_batch_holds_as_much_as_fits_in_its_order(gateways: Gateways) -> None:
    sizes = (600, 800, 50, 60, 50)
    wanted = [structs.replace(Books.wanted(new_owner(), new_request(), 1), holds=(hold("other", 1), hold(micro=micro))) for micro in sizes]
    answers = await gateways.books[0].ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
    over = [answer.over_ceiling for answer in answers if isinstance(answer, GrantedReservation)]
    assert over == [frozenset(), {"api"}, frozenset(), {"api"}, frozenset()]
    assert await gateways.spending() == {"api": (0, 700), "other": (0, 5)}
    again = await gateways.books[1].ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
    assert [answer.over_ceiling for answer in again if isinstance(answer, GrantedReservation)] == over, "repeated"
    assert await gateways.spending() == {"api": (0, 700), "other": (0, 5)}
    assert await gateways.findings() == ()


async def test_without_credits_nothing_is_held(gateways: Gateways) -> None:
    poor = await gateways.books[0].reserve(new_owner(), tokens=9_999, holds=(hold(),))
    assert isinstance(poor, InsufficientCredits)
    assert await gateways.spending() == {}


async def test_requests_of_dead_gateways_give_their_holds_back(gateways: Gateways) -> None:
    ada, request = new_owner(), new_request()
    await gateways.reserve(0, hold(), request=request, owner=ada)
    expired = structs.replace(row(ada, request, 0), reservation=ReservationState.EXPIRED)
    await gateways.books[1].requests.write_requests([expired])
    assert await gateways.spending() == {"api": (0, 0)}


async def test_a_request_that_is_taken_over_gives_its_hold_back(plain_url: str) -> None:
    ada, first, second = new_owner(), new_request(), new_request()
    async with store.opened(plain_url) as opened:
        books, keys = Books(GatewayStore(opened), LedgerStore(opened), plain_url), IdempotencyStore(opened)
        await books.ledger.ensure_default_price(100_000_000, 200_000_000)
        await books.reserve(ada, tokens=1, request=first, holds=(hold(),))
        keyed = IdempotentRequest(owner=TenantId(ada), key="once", request=InferenceRequest(prompt="hi"), request_id=first, seed=1)
        assert await keys.claim(keyed, b"f" * 32, GATEWAY, lease_seconds=90) == NewKeyUse(1)
        again = replace(keyed, request_id=second)
        assert await keys.claim(again, b"f" * 32, GATEWAY, lease_seconds=90, dead=first) == OrphanedKeyUse(1)
        await books.reserve(ada, tokens=1, request=second, holds=(hold(micro=90),))
        assert await books.requests.read_spending() == {("assistant", "api"): (0, 90)}
        assert (await books.report()).findings == ()


async def test_batches_of_two_gateways_with_the_same_accounts_and_targets_do_not_deadlock(gateways: Gateways) -> None:
    """Accounts are locked first, then all targets at once."""
    owners = [new_owner() for _ in range(8)]
    requests = [(new_request(), owner, target) for owner in owners for target in ("api", "other") for _ in range(4)]

    async def reserve(number: int, some: list[tuple[RequestId, UserId, str]]) -> None:
        wanted = [
            structs.replace(Books.wanted(owner, request, 1), holds=(hold(target, 1, 10_000), hold("third", 1, 10_000)))
            for request, owner, target in some
        ]
        await gateways.books[number].ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)

    async def end(number: int, some: list[tuple[RequestId, UserId, str]]) -> None:
        rows = [
            structs.replace(row(owner, request, 1), route=ROUTE, provider="acme", spending=(spent(target, 1), spent("third", 1)))
            for request, owner, target in some
        ]
        await gateways.books[number].requests.write_requests(rows)

    half = len(requests) // 2
    for work in (reserve, end):
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(work(0, requests[:half]))
                tasks.create_task(work(1, requests[half:][::-1]))
                tasks.create_task(work(1, requests[::3]))
    assert await gateways.spending() == {"api": (32, 0), "other": (32, 0), "third": (64, 0)}
    assert await gateways.findings(full=True) == ()


async def test_who_holds_one_target_keeps_others_from_all(gateways: Gateways, plain_url: str) -> None:
    """One lock covers all targets: separate locks would be taken in different orders."""
    first, second = new_request(), new_request()
    for request in (first, second):
        await gateways.reserve(0, request=request)
    async with AsyncExitStack() as stack:
        connections = []
        settings = {"search_path": "gateway", "aimesh.tenant": "*", "lock_timeout": "100ms"}
        for _ in range(2):
            connections.append(await asyncpg.connect(plain_url, server_settings=settings))
            stack.push_async_callback(connections[-1].close)
        hold_one = "SELECT hold_targets(ARRAY[$1::uuid], '{f}', '{assistant}', ARRAY[$2::text], '{1}', '{10}')"
        async with connections[0].transaction():
            await connections[0].execute(hold_one, first, "api")
            with pytest.raises(asyncpg.LockNotAvailableError, match="lock timeout"):
                await connections[1].execute(hold_one, second, "other")
        await connections[1].execute(hold_one, second, "other")
    assert await gateways.spending() == {"api": (0, 1), "other": (0, 1)}


async def test_verification_finds_wrong_sums(gateways: Gateways, plain_url: str) -> None:
    ada, request = new_owner(), new_request()
    await gateways.reserve(0, hold(), request=request, owner=ada)
    await gateways.end(0, request, ada, spent("api", 40))
    await gateways.reserve(0, hold())
    connection = await asyncpg.connect(plain_url, server_settings={"search_path": "gateway"})
    try:
        await connection.execute("UPDATE target_spending SET spent_micro = spent_micro + 3, reserved_micro = reserved_micro - 2")
    finally:
        await connection.close()
    reserved = "the reservations on targets differ from the open reservations by 2 micro-credits"
    assert await gateways.findings(full=True) == (
        reserved,
        "the spending of targets differs from the requests' upstream costs by 3 micro-credits",
    )


async def test_the_log_has_provider_and_money(gateways: Gateways, plain_url: str) -> None:
    ada = new_owner()
    ended = structs.replace(
        row(ada, new_request(), 0), route=ROUTE, provider="acme", attempts=2, spending=(spent("api", 40), spent("other", 2)),
        avoided_micro=MicroCredits(7), created_at=datetime.now(UTC),
    )  # fmt: skip
    await gateways.books[0].requests.write_requests([ended])
    connection = await asyncpg.connect(plain_url, server_settings={"search_path": "gateway", "aimesh.tenant": str(ada)})
    try:
        columns = "provider, attempts, upstream_micro, avoided_micro"
        assert [tuple(one) for one in await connection.fetch(f"SELECT {columns} FROM request_logs")] == [("acme", 2, 42, 7)]
    finally:
        await connection.close()
