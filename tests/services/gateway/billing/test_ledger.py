"""The ledger while PostgreSQL is slow, and after other gateways died."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

import msgspec
import pytest

from services.gateway.billing import ledger as ledgers
from services.gateway.billing.ledger import Ledger, LedgerUnavailable
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import (
    NO_PLAN,
    CostBounds,
    GrantedReservation,
    InsufficientCredits,
    OpenReservation,
    ReservationRequest,
    Spending,
)
from services.gateway.facts import tiers
from services.gateway.facts.request_record import RequestRow, ReservationState
from services.gateway.http_api import http_errors
from shared import errors
from shared.api.auth import ApiKeyLimits, Budget
from shared.api.inference import RUNNING, Receipt
from shared.api.ledger import Account, Allowance, LedgerReport, ModelPrice
from shared.telemetry import Metrics
from shared.types import KeyId, MicroCredits, ModelName, NodeId, RequestId, TenantId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, USER, FakeLedgerStore, FixedConfig, node_id

LimitedBy = Literal["account", "owner", "key"]

BOUNDS = CostBounds(prompt_tokens={ModelName("m"): 100}, max_tokens=1000, answers=1, seconds=60.0)


class LedgerHarness(FakeLedgerStore):
    """One gateway's ledger, with a store that may be slow and a clock that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.metrics = Metrics("gateway")
        self.ledger = Ledger(
            self,
            FixedConfig(),
            node_id(1),
            self.metrics,
            lambda: self.now,
            items=fakes.new_items(),
            billing_page="https://ai.example.org/billing",
        )
        self.failures = 0
        #: How many seconds this process is suspended during a call to PostgreSQL.
        self.stops_for = 0.0
        #: What an account has left of its plan.
        self.allowance: Allowance | None = None
        self.happened_anyway = False
        self.verified = 0
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

    async def read_account(self, owner: TenantId, spending: Spending) -> Account:
        return msgspec.structs.replace(await super().read_account(owner, spending), allowance=self.allowance)

    async def extend_leases(self, requests: Sequence[RequestId], seconds: float) -> None:
        if self.away:
            raise errors.Unavailable("PostgreSQL does not answer")
        self.extended = list(requests)

    async def drop_lost_attempts(self, *, grace_seconds: float, most: int) -> None: ...

    async def list_overdue(self, *, grace_seconds: float, most: int) -> tuple[OpenReservation, ...]:
        return self.overdue

    async def find_price(self, number: int) -> Price | None:
        return (await self.list_prices())[0]

    async def verify(self, *, grace_seconds: float, full: bool = False) -> LedgerReport:
        self.verified += 1
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
async def harness() -> AsyncIterator[LedgerHarness]:
    harness = LedgerHarness()
    async with harness.ledger.running(harness, harness.write, harness.find_receipts):
        yield harness


def new_request() -> RequestId:
    return RequestId(uuid4())


async def test_the_maximum_cost_of_a_request_is_reserved(harness: LedgerHarness) -> None:
    held = await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    (wanted,) = harness.reserved
    assert (wanted.price, wanted.allowance_weight, wanted.prompt_tokens, wanted.max_tokens) == (harness.prices[0], 1, 100, 1000)
    assert (wanted.owner, wanted.spending) == (USER, NO_PLAN)
    assert (held.max_tokens, held.clamped) == (1000, False)
    harness.most_tokens = 20
    held = await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert (held.max_tokens, held.clamped) == (20, True)


async def test_a_price_per_second_holds_the_time_at_the_usual_speed(harness: LedgerHarness) -> None:
    """At half a credit a second, each request once held the whole deadline: 150 credits."""
    harness.prices = (Price(1, ModelPrice(None, MicroCredits(0), MicroCredits(7), compute_second_micro=MicroCredits(500_000))),)
    await harness.ledger.refresh_prices()
    await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    harness.ledger.record_pace(ModelName("m"), 2.0, 22.0, 1000)
    held = await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    await harness.ledger.reserve(OWNER, new_request(), msgspec.structs.replace(BOUNDS, max_tokens=2000))
    await harness.ledger.reserve(OWNER, new_request(), msgspec.structs.replace(BOUNDS, max_tokens=0))
    assert [wanted.seconds for wanted in harness.reserved] == [60.0, 33.0, 60.0, 60.0], "unmeasured, usual, the deadline, an embedding"
    assert held.seconds == {"m": 33.0}
    longer = await harness.ledger.extend(OWNER, held, ModelName("m"), max_tokens=1500, answers=1, target=None)
    extension: Any = harness.extended[0]
    assert extension.price.price.output_micro_per_million == 15_000_000_007, "30 ms of each token, and its price"
    assert longer.seconds == {"m": 48.0}


@pytest.mark.parametrize(
    ("limited_by", "message"),
    [
        ("account", "your credits are too low: 0.00005 credits left, this request needs at least 0.000132 credits"),
        ("key", "this key's budget is too low: 0.00005 credits left"),
        ("owner", "the budget of your account is too low: 0.00005 credits left"),
    ],
)
async def test_an_insufficient_balance_error_says_how_much_is_missing(harness: LedgerHarness, limited_by: LimitedBy, message: str) -> None:
    harness.refuses = InsufficientCredits(50, limited_by)
    with pytest.raises(errors.BudgetExhausted, match=message) as caught:
        await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert (errors.code_of(caught.value), caught.value.status) == ("budget_exhausted", 402)


@pytest.mark.parametrize(
    ("limited_by", "else_hint"), [("account", "add credits"), ("key", "a larger budget"), ("owner", "a larger budget")]
)
async def test_credits_that_running_requests_hold_are_free_when_these_end(
    harness: LedgerHarness, limited_by: LimitedBy, else_hint: str
) -> None:
    harness.refuses = InsufficientCredits(50, limited_by)
    for held, hint, seconds in ((10, else_hint, None), (100, "your running requests hold 0.0001 credits", 5.0)):
        harness.held_micro = MicroCredits(held)
        with pytest.raises(errors.BudgetExhausted) as caught:
            await harness.ledger.reserve(msgspec.structs.replace(OWNER, key_id=KeyId(UUID(int=5))), new_request(), BOUNDS)
        assert hint in caught.value.hint
        assert caught.value.retry_after_seconds == seconds
        answered = dict(http_errors.headers(caught.value))
        assert answered.get(b"retry-after") == (None if seconds is None else b"5")
        assert (b"x-should-retry" in answered) is (seconds is None)


async def test_a_refusal_says_when_the_plan_renews(harness: LedgerHarness) -> None:
    harness.ledger.has_plans = True
    harness.allowance = Allowance(100_000, 100_000, 0, datetime(2026, 3, 31, 9, tzinfo=UTC))
    harness.refuses = InsufficientCredits(50)
    with pytest.raises(errors.BudgetExhausted) as caught:
        await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert caught.value.message == (
        "your plan has no tokens left (100,000 of 100,000 used; renews on 2026-03-31), and your credits are too low: 0.00005 credits "
        "left, this request needs at least 0.000132 credits"
    )
    assert caught.value.hint == "wait until 2026-03-31, add credits, or choose a larger plan: https://ai.example.org/billing"
    # A budget bounds money alone, whatever the plan has left.
    harness.refuses = InsufficientCredits(50, "key")
    with pytest.raises(errors.BudgetExhausted, match="this key's budget is too low"):
        await harness.ledger.reserve(OWNER, new_request(), BOUNDS)


async def test_a_refusal_says_that_tokens_wait_for_a_verified_address(harness: LedgerHarness) -> None:
    harness.ledger.has_plans = True
    harness.refuses = InsufficientCredits(50)
    caller = msgspec.structs.replace(OWNER, has_free_tokens=False)
    for allowance in (None, Allowance(0, 0, 0, datetime(2026, 3, 31, 9, tzinfo=UTC))):
        harness.allowance = allowance
        with pytest.raises(
            errors.BudgetExhausted, match="your plan's tokens are for verified email addresses, one account each, and your"
        ) as caught:
            await harness.ledger.reserve(caller, new_request(), BOUNDS)
        assert caught.value.hint == "verify your address in the settings or with `aicli billing verify`, or add credits"
    assert {one.spending.included_tokens for one in harness.reserved} == {0}
    # A budget bounds money alone; and with tokens from before, there is nothing to verify.
    harness.refuses = InsufficientCredits(50, "key")
    with pytest.raises(errors.BudgetExhausted, match="this key's budget is too low"):
        await harness.ledger.reserve(caller, new_request(), BOUNDS)
    harness.refuses, harness.allowance = InsufficientCredits(50), Allowance(100_000, 100_000, 0, datetime(2026, 3, 31, 9, tzinfo=UTC))
    with pytest.raises(errors.BudgetExhausted, match="your plan has no tokens left"):
        await harness.ledger.reserve(caller, new_request(), BOUNDS)


async def test_reserved_credits_are_shown_until_the_request_ends(harness: LedgerHarness) -> None:
    def shown() -> tuple[float | None, float | None]:
        value = harness.metrics.registry.get_sample_value
        return value("ai_platform_ledger_open_reservations"), value("ai_platform_ledger_oldest_reservation_seconds")

    assert shown() == (0, 0)
    first, second = new_request(), new_request()
    await harness.ledger.reserve(OWNER, first, BOUNDS)
    harness.now += 5
    await harness.ledger.reserve(OWNER, second, BOUNDS)
    harness.now += 2
    assert shown() == (2, 7)
    harness.ledger.forget(first)
    assert shown() == (1, 2)
    harness.ledger.forget(second)
    harness.ledger.forget(second)
    assert shown() == (0, 0)
    # Each of the two reservations was one statement.
    assert harness.metrics.registry.get_sample_value("ai_platform_ledger_reserve_seconds_count") == 2


async def test_a_short_outage_of_postgresql_is_waited_out(harness: LedgerHarness) -> None:
    harness.failures = 2
    assert (await harness.ledger.reserve(OWNER, new_request(), BOUNDS)).max_tokens == 1000
    harness.failures = 100
    with pytest.raises(LedgerUnavailable) as caught:
        await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert (errors.code_of(caught.value), caught.value.status) == ("ledger_unavailable", 503)
    assert harness.now < 1 + 3


async def test_an_organisation_that_shares_its_founders_limits_gets_no_included_tokens(harness: LedgerHarness) -> None:
    harness.ledger.has_plans = True
    team = msgspec.structs.replace(OWNER, team_id=TenantId(uuid4()), founder_id=USER)
    await harness.ledger.reserve(team, RequestId(uuid4()), BOUNDS)
    await harness.ledger.reserve(OWNER, RequestId(uuid4()), BOUNDS)
    assert [one.spending.included_tokens for one in harness.reserved] == [0, tiers.DEFAULTS[OWNER.tier].included_tokens]
    assert all(one.spending.has_plan for one in harness.reserved)


async def test_budgets_hold_with_and_without_plans(harness: LedgerHarness) -> None:
    of_key, of_owner = Budget(MicroCredits(7), "day"), Budget(MicroCredits(9), "month")
    limits = ApiKeyLimits(budget_micro=of_key.micro, budget_every=of_key.every)
    caller = msgspec.structs.replace(OWNER, key_limits=limits, budget=of_owner)
    for has_plans in (False, True):
        harness.ledger.has_plans = has_plans
        await harness.ledger.reserve(caller, new_request(), BOUNDS)
    assert [(one.spending.key_budget, one.spending.owner_budget) for one in harness.reserved] == [(of_key, of_owner)] * 2
    assert [one.spending.has_plan for one in harness.reserved] == [False, True]


async def test_a_plan_helps_only_if_it_covers_every_model_that_may_serve(harness: LedgerHarness) -> None:
    """The heaviest weight counts; and of models that a plan doesn't cover, the request pays as if it covered none."""
    models = {ModelName("light"): 1, ModelName("heavy"): 3, ModelName("paid"): 0}
    harness.prices = (
        tuple(
            Price(number, ModelPrice(model, MicroCredits(1_000_000), MicroCredits(2_000_000), allowance_weight=weight))
            for number, (model, weight) in enumerate(models.items(), start=2)
        )
        + harness.prices
    )
    await harness.ledger.refresh_prices()
    for names in (("light", "heavy"), ("light", "paid"), ("light",)):
        bounds = msgspec.structs.replace(BOUNDS, prompt_tokens={ModelName(name): 100 for name in names})
        await harness.ledger.reserve(OWNER, new_request(), bounds)
    assert [one.allowance_weight for one in harness.reserved] == [3, 0, 1]
    assert harness.reserved[1].model == "paid"


async def test_a_retry_finds_a_reservation_whose_response_was_lost(harness: LedgerHarness) -> None:
    harness.failures, harness.happened_anyway = 1, True
    assert (await harness.ledger.reserve(OWNER, new_request(), BOUNDS)).max_tokens == 1000
    with pytest.raises(errors.Internal, match="twice"):
        await harness.ledger.reserve(OWNER, new_request(), BOUNDS)


async def test_leases_are_extended_for_running_requests_and_unwritten_rows(harness: LedgerHarness) -> None:
    running, ended, waiting = new_request(), new_request(), new_request()
    for request in (running, ended):
        await harness.ledger.reserve(OWNER, request, BOUNDS)
    harness.ledger.forget(ended)
    await harness.ledger.heartbeat([waiting])
    assert harness.extended == [running, waiting]


async def test_an_odd_orphan_does_not_keep_the_others_from_being_settled(harness: LedgerHarness) -> None:
    odd, fine = new_request(), new_request()
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - what a worker of a stranger may say
    harness.overdue = (overdue(odd), overdue(fine))
    harness.receipts = {
        odd: Receipt(odd, 10, 0, 90, "stop", naive, credited_tokens=20),
        fine: Receipt(fine, 10, 0, 90, "stop", credited_tokens=20),
    }
    await harness.ledger.heartbeat([])
    harness.now += ledgers.HEARTBEAT_SECONDS + 1
    await harness.sweep()
    assert [row.id for row in harness.rows] == [fine]


def overdue(request: RequestId) -> OpenReservation:
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    return OpenReservation(request, USER, None, ModelName("m"), 1, 100, 50, long_ago)


async def test_orphans_are_settled_but_not_right_after_an_outage_of_postgresql(harness: LedgerHarness) -> None:
    sent, unknown, running = new_request(), new_request(), new_request()
    harness.overdue = (overdue(sent), overdue(unknown), overdue(running))
    harness.receipts = {sent: Receipt(sent, 10, 0, 90, "stop", credited_tokens=20), running: Receipt(running, 10, 0, 20, RUNNING)}
    await harness.sweep()
    await harness.ledger.heartbeat([])
    await harness.sweep()
    harness.now += ledgers.HEARTBEAT_SECONDS + 1
    harness.away = True
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await harness.ledger.heartbeat([])
    await harness.sweep()
    harness.away = False
    await harness.ledger.heartbeat([])
    await harness.sweep()
    assert harness.rows == []
    harness.now += ledgers.HEARTBEAT_SECONDS
    await harness.ledger.heartbeat([])
    await harness.sweep()
    assert [(row.id, row.cost_micro, row.reservation) for row in harness.rows] == [
        (sent, 50, ReservationState.SETTLED),
        (unknown, 0, ReservationState.EXPIRED),
    ]


async def test_the_ledger_is_not_judged_before_the_first_sweep(harness: LedgerHarness) -> None:
    """Reservations of gateways that died before are no mistake: the first sweep settles them."""
    lost = new_request()
    harness.overdue = (overdue(lost),)
    judged = asyncio.create_task(harness.ledger.judge())
    await harness.ledger.heartbeat([])
    await harness.sweep()
    assert (harness.verified, judged.done()) == (0, False)
    harness.now += ledgers.HEARTBEAT_SECONDS
    await harness.sweep()
    await judged
    assert [row.id for row in harness.rows] == [lost]
    assert harness.verified


async def test_ledger_drift_shows_in_the_metrics(harness: LedgerHarness) -> None:
    await harness.ledger.verify()
    assert "ai_platform_ledger_drift_micro 0.0" in harness.metrics.render()
    harness.report = LedgerReport(MicroCredits(3), MicroCredits(-2), MicroCredits(1), 0, 0, 0, 0, ("something is wrong",))
    await harness.ledger.verify()
    assert "ai_platform_ledger_drift_micro 6.0" in harness.metrics.render()
