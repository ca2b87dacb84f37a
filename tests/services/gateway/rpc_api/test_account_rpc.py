"""The ledger's methods for users and administrators, on a real PostgreSQL and with a fake auth."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from services.gateway import store
from services.gateway.billing.ledger import Ledger
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import CostBounds
from services.gateway.facts import tiers
from services.gateway.facts.request_record import ReservationState
from services.gateway.rpc_api.account_rpc import MAX_TOP_UP, AccountRpc
from services.gateway.store import GatewayStore
from shared import errors
from shared.api import audit, auth, organizations
from shared.api.auth import Budget, Every
from shared.api.gateway import KeyBudget
from shared.api.ledger import MICRO, Account, Allowance, ListPrices, ModelPrice, ReadAccount, RevertRequest, SetPrice, TopUp
from shared.api.method import Nothing
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics
from shared.types import MicroCredits, ModelName, RequestId, TenantId, Tier, UserId, UserRole
from tests.services.gateway import fakes
from tests.services.gateway.billing.test_ledger_store import row
from tests.services.gateway.fakes import OWNER, FakeRpc, FixedConfig, node_id, rpc_call

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
MONTHLY, DAILY = Budget(MicroCredits(200_000), Every.MONTH), Budget(MicroCredits(2 * MICRO), Every.DAY)
ADA = auth.User(OWNER.user_id, "ada", "ada@example.org", UserRole.USER, Tier.FREE, is_active=True, created_at=LONG_AGO, budget=MONTHLY)
ADMIN = msgspec.structs.replace(OWNER, user_id=UserId(uuid4()), username="root", role=UserRole.ADMIN)
ACME = organizations.Organization(TenantId(uuid4()), "Acme", Tier.PRO, LONG_AGO, 1, budget=DAILY)
BOUNDS = CostBounds(prompt_tokens={ModelName("m"): 0}, max_tokens=1000, answers=1, seconds=1.0)


class AccountRpcHarness:
    def __init__(self, requests: GatewayStore, ledger_store: LedgerStore, ledger: Ledger) -> None:
        self.requests, self.ledger = requests, ledger
        rpc = FakeRpc()
        rpc.answers |= {"auth.getUserCalled": self._user, "auth.getUser": self._user, "auth.getOrganisation": self._organisation}
        rpc.answers[audit.record_acts.name] = self._record
        self.acts: list[audit.AuditedAct] = []
        self.audit_reporting = AuditReporting(rpc)
        self.account_rpc = AccountRpc(ledger_store, ledger, FixedConfig(), rpc, self.audit_reporting)

    @staticmethod
    async def _user(request: Any) -> auth.User:
        if getattr(request, "user", "ada") != "ada" or getattr(request, "user_id", ADA.id) != ADA.id:
            raise errors.NotFound("there is no such user")
        return ADA

    async def _record(self, request: audit.RecordActs) -> Nothing:
        self.acts += request.acts
        return Nothing()

    async def audited(self) -> list[tuple[str, str, dict[str, str]]]:
        await self.audit_reporting.send()
        return [(act.action, act.target, act.details) for act in self.acts]

    @staticmethod
    async def _organisation(request: organizations.GetOrganization) -> organizations.OrganizationDetails:
        if request.id != ACME.id:
            raise errors.NotFound("there is no such organisation")
        return organizations.OrganizationDetails(ACME, (), ())


@pytest.fixture
async def harness(postgres_url: str) -> AsyncIterator[AccountRpcHarness]:
    async with harness_with(postgres_url, has_plans=False) as without_plans:
        yield without_plans


@pytest.fixture
async def with_plans(postgres_url: str) -> AsyncIterator[AccountRpcHarness]:
    async with harness_with(postgres_url, has_plans=True) as harness:
        yield harness


@asynccontextmanager
async def harness_with(postgres_url: str, *, has_plans: bool) -> AsyncIterator[AccountRpcHarness]:
    async with store.opened(postgres_url) as opened:
        ledger_store, requests = LedgerStore(opened), GatewayStore(opened)
        await ledger_store.ensure_default_price(100_000_000, 200_000_000)
        ledger = Ledger(ledger_store, FixedConfig(), node_id(1), Metrics("gateway"), items=fakes.new_items(), has_plans=has_plans)

        async def no_receipts(_: object) -> dict[RequestId, Any]:
            return {}

        async with ledger.running(_NothingWaits(), requests.write_requests, no_receipts):
            yield AccountRpcHarness(requests, ledger_store, ledger)


class _NothingWaits:
    waiting: tuple[RequestId, ...] = ()


async def test_an_account_starts_with_the_tokens_of_its_plan(with_plans: AccountRpcHarness) -> None:
    account = await with_plans.account_rpc.read_account(ReadAccount(), rpc_call(OWNER))
    assert (account.balance_micro, account.reserved_micro, account.overage_micro, account.free_micro) == (0, 0, 0, 0)
    assert account.allowance is not None
    assert account.allowance == Allowance(100_000, 0, 0, account.allowance.renews_at)
    assert timedelta(days=27) < account.allowance.renews_at - datetime.now(UTC) <= timedelta(days=31), "a month from now"
    rich = msgspec.structs.replace(OWNER, user_id=UserId(uuid4()), tier=Tier.ENTERPRISE)
    enterprise = await with_plans.account_rpc.account_of(rich)
    assert enterprise.allowance is not None
    assert (enterprise.allowance.included, enterprise.allowance.left, enterprise.free_micro) == (None, None, None)


async def test_a_verified_address_gets_the_tokens_of_a_free_plan_at_once(with_plans: AccountRpcHarness) -> None:
    async def unverified(_: object) -> auth.User:
        return msgspec.structs.replace(ADA, has_free_tokens=False)

    rpc = with_plans.account_rpc.rpc
    assert isinstance(rpc, FakeRpc)
    rpc.answers |= {"auth.getUserCalled": unverified, "auth.getUser": unverified}
    caller = msgspec.structs.replace(OWNER, has_free_tokens=False)
    with pytest.raises(errors.BudgetExhausted, match="verified email addresses"):
        await with_plans.ledger.reserve(caller, RequestId(uuid4()), BOUNDS)
    # Nor do an administrator's look at the account and credits grant any.
    as_admin = rpc_call(ADMIN)
    seen = await with_plans.account_rpc.read_account(ReadAccount(ADA.id), as_admin)
    topped_up = await with_plans.account_rpc.top_up(TopUp("ada", MicroCredits(MICRO), "gift"), as_admin)
    assert [account.allowance and account.allowance.included for account in (seen, topped_up)] == [0, 0]
    assert (await with_plans.ledger.reserve(caller, RequestId(uuid4()), BOUNDS)).plan_tokens == 0, "credits need no verified address"
    assert (await with_plans.ledger.reserve(OWNER, RequestId(uuid4()), BOUNDS)).plan_tokens == 1000
    account = await with_plans.account_rpc.account_of(OWNER)
    assert account.allowance == Allowance(100_000, 0, 1000, account.allowance.renews_at) if account.allowance else False
    assert (await with_plans.ledger.verify()).findings == ()


async def test_without_plans_an_account_has_no_tokens_and_no_bound(harness: AccountRpcHarness) -> None:
    account = await harness.account_rpc.account_of(OWNER)
    assert (account.allowance, account.overage_micro, account.free_micro, account.balance_micro) == (None, None, None, 0)
    request = RequestId(uuid4())
    held = await harness.ledger.reserve(OWNER, request, BOUNDS)
    assert (held.max_tokens, held.clamped, held.plan_tokens) == (1000, False, 0)
    await harness.requests.write_requests([row(OWNER.user_id, request, 700)])
    assert (await harness.account_rpc.account_of(OWNER)).balance_micro == -700
    assert (await harness.ledger.verify()).findings == ()


async def test_tokens_of_the_plan_are_used_before_the_balance(with_plans: AccountRpcHarness) -> None:
    """A model's weight says how many; 0: only the balance pays."""
    three, none = ModelName("three"), ModelName("none")
    for model, weight in ((three, 3), (none, 0)):
        price = ModelPrice(model, MicroCredits(100 * MICRO), MicroCredits(200 * MICRO), allowance_weight=weight)
        await with_plans.account_rpc.set_price(SetPrice(price), rpc_call(ADMIN))
    request = RequestId(uuid4())
    held = await with_plans.ledger.reserve(OWNER, request, msgspec.structs.replace(BOUNDS, prompt_tokens={three: 10}))
    assert held.plan_tokens == 3 * 1010
    await with_plans.requests.write_requests(
        [msgspec.structs.replace(row(OWNER.user_id, request, 0), covered_tokens=90, reservation=ReservationState.SETTLED)]
    )
    account = await with_plans.account_rpc.account_of(OWNER)
    assert account.allowance is not None
    assert (account.allowance.used, account.allowance.held, account.balance_micro) == (90, 0, 0)
    with pytest.raises(errors.BudgetExhausted):
        await with_plans.ledger.reserve(OWNER, RequestId(uuid4()), msgspec.structs.replace(BOUNDS, prompt_tokens={none: 10}))
    assert (await with_plans.ledger.verify()).findings == ()


async def test_without_plans_an_account_is_bounded_by_its_budget_alone(harness: AccountRpcHarness) -> None:
    account = await harness.account_rpc.read_account(ReadAccount(), rpc_call(OWNER))
    assert (account.balance_micro, account.reserved_micro, account.allowance, account.free_micro) == (0, 0, None, None)
    limited = await harness.account_rpc.account_of(msgspec.structs.replace(OWNER, budget=MONTHLY))
    assert (limited.budget, limited.spent_micro, limited.free_micro) == (MONTHLY, 0, MONTHLY.micro)


async def test_clients_of_release_03_get_what_they_need_and_others_ignore_it(harness: AccountRpcHarness) -> None:
    account = await harness.account_rpc.read_account(ReadAccount(), rpc_call(OWNER))
    wire = msgspec.json.encode(account)
    old = msgspec.json.decode(wire)
    assert (old["includedMicro"], old["monthlyMicro"], old["renewsAt"][8:]) == (0, None, "01T00:00:00Z")
    assert old["renewsAt"] > f"{LONG_AGO:%Y-%m}"
    assert b"includedMicro" not in msgspec.json.encode(msgspec.json.decode(wire, type=Account))


async def test_the_budget_of_this_month_refuses_what_it_does_not_cover(harness: AccountRpcHarness) -> None:
    bounds = CostBounds(prompt_tokens={ModelName("m"): 0}, max_tokens=1000, answers=1, seconds=1.0)
    before = RequestId(uuid4())
    await harness.ledger.reserve(OWNER, before, bounds)
    await harness.requests.write_requests([row(OWNER.user_id, before, 150_000)])
    limited = msgspec.structs.replace(OWNER, budget=MONTHLY)
    assert (await harness.account_rpc.account_of(limited)).spent_micro == 0, "the budget begins now"
    first = RequestId(uuid4())
    await harness.ledger.reserve(limited, first, bounds)
    await harness.requests.write_requests([row(OWNER.user_id, first, 199_900)])
    with pytest.raises(errors.BudgetExhausted) as refused:
        await harness.ledger.reserve(limited, RequestId(uuid4()), bounds)
    assert refused.value.message.startswith("the budget of your account is too low: 0.0001 credits left, this request needs at least ")
    assert refused.value.hint == "ask for a larger budget, or wait for the next month (UTC)"
    account = await harness.account_rpc.account_of(limited)
    assert (account.spent_micro, account.free_micro) == (199_900, 100)
    assert (await harness.ledger.reserve(OWNER, RequestId(uuid4()), bounds)).max_tokens == 1000, "without the budget"
    assert (await harness.ledger.verify()).findings == ()


async def test_the_remaining_budget_of_a_key(harness: AccountRpcHarness) -> None:
    assert await harness.account_rpc.find_key_budget(OWNER) is None
    limited = msgspec.structs.replace(OWNER, key_limits=auth.ApiKeyLimits(budget_micro=MicroCredits(5 * MICRO)))
    assert await harness.account_rpc.find_key_budget(msgspec.structs.replace(limited, key_id=None)) is None
    assert await harness.account_rpc.find_key_budget(limited) == KeyBudget(MicroCredits(5 * MICRO), MicroCredits(0), MicroCredits(0))
    first, second = RequestId(uuid4()), RequestId(uuid4())
    for request in (first, second):
        await harness.ledger.reserve(limited, request, BOUNDS)
    await harness.requests.write_requests([row(OWNER.user_id, first, 700)])
    # 1,000 tokens at 200 micro-credits are reserved for the second request.
    assert await harness.account_rpc.find_key_budget(limited) == KeyBudget(
        MicroCredits(5 * MICRO), MicroCredits(700), MicroCredits(200_000)
    )
    monthly = msgspec.structs.replace(limited, key_limits=auth.ApiKeyLimits(budget_micro=MicroCredits(5 * MICRO), budget_every=Every.MONTH))
    renewed = await harness.account_rpc.find_key_budget(monthly)
    assert renewed is not None
    assert renewed.every is Every.MONTH


async def test_only_an_admin_reads_other_accounts(harness: AccountRpcHarness) -> None:
    await harness.account_rpc.top_up(TopUp("ada", MicroCredits(5)), rpc_call(ADMIN))
    assert (await harness.account_rpc.read_account(ReadAccount(ADA.id), rpc_call(ADMIN))).balance_micro == 5
    assert (await harness.account_rpc.read_account(ReadAccount(ADA.id), rpc_call(ADMIN))).budget == MONTHLY
    for nobody in (OWNER, msgspec.structs.replace(ADMIN, scopes=("usage:read",))):
        with pytest.raises(errors.NotAllowed, match="this is another user's account"):
            await harness.account_rpc.read_account(ReadAccount(UserId(uuid4())), rpc_call(nobody))


async def test_a_repeated_top_up_happens_once(harness: AccountRpcHarness) -> None:
    order = TopUp("ada", MicroCredits(5 * MICRO), "prize", RequestId(uuid4()))
    for _ in range(3):
        assert (await harness.account_rpc.top_up(order, rpc_call(ADMIN))).balance_micro == 5 * MICRO
    account = await harness.account_rpc.top_up(TopUp("ada", MicroCredits(-2 * MICRO)), rpc_call(ADMIN))
    assert account.balance_micro == 3 * MICRO
    assert (await harness.audited())[-1] == ("credits.move", str(ADA.id), {"micro": str(-2 * MICRO), "note": ""})
    assert (await harness.ledger.verify()).findings == ()


async def test_an_organisation_is_topped_up_by_its_id(with_plans: AccountRpcHarness) -> None:
    account = await with_plans.account_rpc.top_up(TopUp(str(ACME.id), MicroCredits(5 * MICRO)), rpc_call(ADMIN))
    assert account.allowance is not None
    assert (account.balance_micro, account.allowance.included, account.budget) == (
        5 * MICRO,
        tiers.DEFAULTS[Tier.PRO].included_tokens,
        DAILY,
    )
    assert [(action, target) for action, target, _ in await with_plans.audited()] == [("credits.move", str(ACME.id))]
    assert await with_plans.account_rpc.read_account(ReadAccount(UserId(ACME.id)), rpc_call(ADMIN)) == account
    for whose in ("Acme", str(uuid4())):
        with pytest.raises(errors.NotFound, match=r"there is no such user|no user or organization has the id"):
            await with_plans.account_rpc.top_up(TopUp(whose, MicroCredits(MICRO)), rpc_call(ADMIN))
    with pytest.raises(errors.NotFound, match="no user or organization has the id"):
        await with_plans.account_rpc.read_account(ReadAccount(UserId(uuid4())), rpc_call(ADMIN))


@pytest.mark.parametrize(
    "order",
    [
        TopUp("ada", MicroCredits(0)),
        TopUp("ada", MicroCredits(MAX_TOP_UP + 1)),
        TopUp("ada", MicroCredits(-MAX_TOP_UP - 1)),
        TopUp("ada", MicroCredits(1), "x" * 501),
        TopUp("ada", MicroCredits(1), "two\nlines"),
    ],
)
async def test_invalid_amounts_and_notes_are_refused(harness: AccountRpcHarness, order: TopUp) -> None:
    with pytest.raises(
        errors.BadRequest,
        match=r"the amount is 0 or too large|a note must be one line of at most ",
    ):
        await harness.account_rpc.top_up(order, rpc_call(ADMIN))


async def test_a_new_price_applies_to_new_requests_only(harness: AccountRpcHarness) -> None:
    model = ModelName("m")
    bounds = CostBounds(prompt_tokens={model: 0}, max_tokens=1000, answers=1, seconds=1.0)
    before = await harness.ledger.reserve(OWNER, RequestId(uuid4()), bounds)
    found = await harness.account_rpc.set_price(SetPrice(ModelPrice(model, MicroCredits(0), MicroCredits(5 * MICRO))), rpc_call(ADMIN))
    assert [price.model for price in found.prices] == [model, None]
    assert [(action, target) for action, target, _ in await harness.audited()] == [("price.set", model)]
    after = await harness.ledger.reserve(OWNER, RequestId(uuid4()), bounds)
    assert (before.prices[model].cost(0, 100, 0), after.prices[model].cost(0, 100, 0)) == (20_000, 500)
    assert len((await harness.account_rpc.list_prices(ListPrices(history=True), rpc_call(ADMIN))).prices) == 2
    with pytest.raises(errors.BadRequest, match="the price of input tokens is out of range"):
        await harness.account_rpc.set_price(SetPrice(ModelPrice(model, MicroCredits(-1), MicroCredits(0))), rpc_call(ADMIN))


async def test_a_request_is_refunded_once(harness: AccountRpcHarness) -> None:
    request = RequestId(uuid4())
    await harness.ledger.reserve(OWNER, request, BOUNDS)
    with pytest.raises(errors.NotFound, match="no request with this id has cost anything"):
        await harness.account_rpc.revert(RevertRequest(request), rpc_call(ADMIN))
    await harness.requests.write_requests([row(OWNER.user_id, request, 700)])
    assert (await harness.account_rpc.read_account(ReadAccount(), rpc_call(OWNER))).balance_micro == -700
    assert (await harness.account_rpc.revert(RevertRequest(request, "nonsense"), rpc_call(ADMIN))).balance_micro == 0
    assert await harness.audited() == [("credits.revert", str(request), {"note": "nonsense"})]
    with pytest.raises(errors.AlreadyExists, match="the cost of this request was already refunded"):
        await harness.account_rpc.revert(RevertRequest(request), rpc_call(ADMIN))
    assert (await harness.ledger.verify()).findings == ()
