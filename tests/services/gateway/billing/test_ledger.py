"""The ledger while PostgreSQL is slow, and after other gateways died."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec
import pytest

from services.gateway.billing import ledger as ledgers
from services.gateway.billing.ledger import CostBounds, Ledger, LedgerUnavailable
from services.gateway.billing.prices import Price
from services.gateway.billing.request_record import RequestRow, ReservationState
from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits, OpenReservation, ReservationRequest
from services.gateway.limits import tiers
from shared import errors
from shared.api.inference import RUNNING, Receipt
from shared.api.ledger import LedgerReport
from shared.telemetry import Metrics
from shared.types import MicroCredits, ModelName, NodeId, RequestId, TenantId
from tests.services.gateway.fakes import OWNER, USER, FakeLedgerStore, node_id

BOUNDS = CostBounds(model=ModelName("m"), prompt_tokens=100, max_tokens=1000, answers=1, seconds=60.0)


class Site(FakeLedgerStore):
    """One gateway's ledger, with a store that may be slow and a clock that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.metrics = Metrics("gateway")
        self.ledger = Ledger(self, tiers.DEFAULTS, node_id(1), self.metrics, lambda: self.now)
        self.failures = 0
        #: This process is stopped for so long while PostgreSQL is asked.
        self.stops_for = 0.0
        self.happened_anyway = False
        self.extended: list[RequestId] = []
        self.overdue: tuple[OpenReservation, ...] = ()
        self.rows: list[RequestRow] = []
        self.receipts: dict[RequestId, Receipt] = {}
        self.report = LedgerReport(MicroCredits(0), MicroCredits(0), MicroCredits(0), 0, 0, 0, 0)

    async def reserve(
        self, wanted: Sequence[ReservationRequest], *, gateway: NodeId, lease_seconds: float
    ) -> list[GrantedReservation | InsufficientCredits]:
        if self.stops_for:
            self.now += self.stops_for
            self.ledger._suspend_detector.record_tick(time.monotonic() - self.stops_for)
            self.stops_for = 0.0
            raise errors.Unavailable("PostgreSQL does not answer")
        if self.failures:
            self.failures -= 1
            self.now += 0.5
            raise errors.Unavailable("PostgreSQL does not answer")
        if self.happened_anyway:
            return [GrantedReservation(one.max_tokens, is_repeated=True) for one in wanted]
        return await super().reserve(wanted, gateway=gateway, lease_seconds=lease_seconds)

    async def extend_leases(self, requests: Sequence[RequestId], seconds: float) -> None:
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        self.extended = list(requests)

    async def list_overdue(self, *, grace_seconds: float, most: int) -> tuple[OpenReservation, ...]:
        return self.overdue

    async def find_price(self, number: int) -> Price | None:
        return (await self.list_prices())[0]

    async def verify(self, *, grace_seconds: float, full: bool = False) -> LedgerReport:
        return self.report

    @property
    def waiting(self) -> list[RequestId]:
        return []

    async def write(self, rows: Sequence[RequestRow]) -> None:
        self.rows += rows

    async def find_receipts(self, _reservations: Sequence[OpenReservation]) -> Mapping[RequestId, Receipt]:
        return self.receipts

    async def sweep(self) -> None:
        await self.ledger.sweep(self.write, self.find_receipts)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    async with made.ledger.running(made, made.write, made.find_receipts):
        yield made


def new_request() -> RequestId:
    return RequestId(uuid4())


async def test_the_maximum_cost_of_a_request_is_reserved(site: Site) -> None:
    held = await site.ledger.reserve(OWNER, new_request(), BOUNDS)
    (wanted,) = site.reserved
    assert (wanted.fixed_micro, wanted.micro_per_million, wanted.max_tokens) == (100, 2_000_000, 1000)
    assert (wanted.owner, wanted.monthly_micro, wanted.key_budget_micro) == (USER, 100_000_000_000, None)
    assert (held.max_tokens, held.clamped) == (1000, False)
    site.most_tokens = 20
    held = await site.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert (held.max_tokens, held.clamped) == (20, True)


@pytest.mark.parametrize(
    ("of_key", "message"),
    [
        (False, "your credits are too low: 0.00005 credits left, this request needs at least 0.000132 credits"),
        (True, "this key's budget is too low: 0.00005 credits left"),
    ],
)
async def test_an_insufficient_balance_error_says_how_much_is_missing(site: Site, of_key: bool, message: str) -> None:
    site.refuses = InsufficientCredits(50, of_key=of_key)
    with pytest.raises(errors.BudgetExhausted, match=message) as caught:
        await site.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert (errors.code_of(caught.value), caught.value.status) == ("budget_exhausted", 402)


async def test_reserved_credits_are_shown_until_the_request_ends(site: Site) -> None:
    def shown() -> tuple[float | None, float | None]:
        value = site.metrics.registry.get_sample_value
        return value("ai_platform_ledger_open_reservations"), value("ai_platform_ledger_oldest_reservation_seconds")

    assert shown() == (0, 0)
    first, second = new_request(), new_request()
    await site.ledger.reserve(OWNER, first, BOUNDS)
    site.now += 5
    await site.ledger.reserve(OWNER, second, BOUNDS)
    site.now += 2
    assert shown() == (2, 7)
    site.ledger.ended(first)
    assert shown() == (1, 2)
    site.ledger.ended(second)
    site.ledger.ended(second)
    assert shown() == (0, 0)
    # Each of the two was one statement.
    assert site.metrics.registry.get_sample_value("ai_platform_ledger_reserve_seconds_count") == 2


async def test_a_short_outage_of_postgresql_is_waited_out(site: Site) -> None:
    site.failures = 2
    assert (await site.ledger.reserve(OWNER, new_request(), BOUNDS)).max_tokens == 1000
    site.failures = 100
    with pytest.raises(LedgerUnavailable) as caught:
        await site.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert (errors.code_of(caught.value), caught.value.status) == ("ledger_unavailable", 503)
    assert site.now < 1 + 3


async def test_an_organisation_that_shares_its_founders_limits_gets_no_included_credits(site: Site) -> None:
    team = msgspec.structs.replace(OWNER, team_id=TenantId(uuid4()), founder_id=USER)
    await site.ledger.reserve(team, RequestId(uuid4()), BOUNDS)
    await site.ledger.reserve(OWNER, RequestId(uuid4()), BOUNDS)
    assert [one.monthly_micro for one in site.reserved] == [0, tiers.DEFAULTS[OWNER.tier].monthly_micro]


async def test_a_retry_finds_a_reservation_whose_response_was_lost(site: Site) -> None:
    site.failures, site.happened_anyway = 1, True
    assert (await site.ledger.reserve(OWNER, new_request(), BOUNDS)).max_tokens == 1000
    with pytest.raises(errors.Internal, match="twice"):
        await site.ledger.reserve(OWNER, new_request(), BOUNDS)


async def test_leases_are_extended_for_running_requests_and_unwritten_rows(site: Site) -> None:
    running, ended, waiting = new_request(), new_request(), new_request()
    for request in (running, ended):
        await site.ledger.reserve(OWNER, request, BOUNDS)
    site.ledger.ended(ended)
    await site.ledger.heartbeat([waiting])
    assert site.extended == [running, waiting]


def overdue(request: RequestId) -> OpenReservation:
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    return OpenReservation(request, USER, None, ModelName("m"), 1, 100, 50, long_ago, long_ago)


async def test_orphans_are_settled_but_not_right_after_an_outage_of_postgresql(site: Site) -> None:
    sent, unknown, running = new_request(), new_request(), new_request()
    site.overdue = (overdue(sent), overdue(unknown), overdue(running))
    site.receipts = {sent: Receipt(sent, 10, 0, 90, "stop", credited_tokens=20), running: Receipt(running, 10, 0, 20, RUNNING)}
    await site.sweep()
    await site.ledger.heartbeat([])
    await site.sweep()
    site.now += ledgers.HEARTBEAT_SECONDS + 1
    site.away = True
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await site.ledger.heartbeat([])
    await site.sweep()
    site.away = False
    await site.ledger.heartbeat([])
    await site.sweep()
    assert site.rows == []
    site.now += ledgers.HEARTBEAT_SECONDS
    await site.ledger.heartbeat([])
    await site.sweep()
    assert [(row.id, row.cost_micro, row.reservation) for row in site.rows] == [
        (sent, 50, ReservationState.SETTLED),
        (unknown, 0, ReservationState.EXPIRED),
    ]


async def test_ledger_drift_shows_in_the_metrics(site: Site) -> None:
    await site.ledger.verify()
    assert "ai_platform_ledger_drift_micro 0.0" in site.metrics.render()
    site.report = LedgerReport(MicroCredits(3), MicroCredits(-2), MicroCredits(1), 0, 0, 0, 0, ("something is wrong",))
    await site.ledger.verify()
    assert "ai_platform_ledger_drift_micro 6.0" in site.metrics.render()
