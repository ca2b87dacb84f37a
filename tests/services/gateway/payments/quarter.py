"""A shop in virtual time: customers order, use, pay, or don't, and want their money back, while gateways and databases are lost.

``Way`` is how they pay; it keeps the books of what it has kept. Everything is drawn from one seed.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Protocol
from uuid import UUID

import msgspec
import pytest
from dateutil.relativedelta import relativedelta

from services.gateway.billing.reservations import InsufficientCredits, Spending
from services.gateway.payments.billing import Billing
from services.gateway.payments.notice_outbox import NoticeOutbox
from services.gateway.payments.payment_provider import PaymentProvider
from services.gateway.payments.provider_orders import ProviderOrders
from shared import errors, plan_names
from shared.api import notices
from shared.api.billing import InvoicePurpose
from shared.api.method import Nothing
from shared.api.notices import AddNotice, LimitUsed, PaymentLate
from shared.config_documents import ConfigKind, PlanDocument
from shared.stores import transactions
from shared.types import RequestId, TenantId, UserId
from tests.services.gateway.billing.test_ledger_store import Books, priced, row
from tests.services.gateway.payments import postgres_clock, quarter_judge
from tests.services.gateway.payments.quarter_judge import Account, Outside
from tests.services.gateway.payments.shop import SELLER, Shop
from tests.services.gateway.recovery.restoring import RestorableGateway

#: Months that begin on the 31st are shorter later.
START = datetime(2027, 1, 31, 10, tzinfo=UTC)
INCLUDED, TOP_UP_MINOR = 1000, 2500
#: Of a token that no plan covers: one cent.
TOKEN_MICRO = 10_000
PRICE = priced(output=TOKEN_MICRO * 1_000_000)
PLANS: dict[tuple[ConfigKind, str], Any] = {
    (ConfigKind.PLAN, "pro"): PlanDocument(
        fee=29.0, for_sale=True, included_tokens=INCLUDED, overage_limit="unlimited", stripe_price="price_pro",
        stripe_meter="price_tokens", paddle_price="pri_pro",
    ),
    (ConfigKind.PLAN, "free"): PlanDocument(included_tokens=0, for_sale=True),
}  # fmt: skip
_CALLS = ("read", "bill", "check_out", "cancel", "find_checkout", "find_bought", "list_events")
#: Statements and calls of a gateway before a kill, at most.
_MAX_STEPS = 60
_KILL_SHARE, _GATEWAYS, _REST_DAYS = 0.3, 3, 34


class VirtualTime:
    """The clock of the fakes and of the libraries' callers, as long as it is patched into their modules in place of ``time``."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def time(self) -> float:
        return (datetime.now(UTC) + self.shift).timestamp()

    def set(self, moment: datetime) -> None:
        self.shift = moment - datetime.now(UTC)

    @property
    def datetimes(self) -> type[datetime]:
        clock = self

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> "Shifted":
                return cls.fromtimestamp(clock.time(), tz)

        return Shifted


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    customers: int
    days: int
    #: From the day of the copy to the day on which it replaces the database.
    restores: tuple[tuple[int, int], ...]


@dataclass(slots=True, eq=False)
class Customer:
    owner: TenantId
    habit: str
    #: The day of the first order.
    day: int
    #: When the first period of the plan began.
    began: datetime | None = None
    #: Tokens of the plan that requests have used, by period, and what they have cost beyond it, in minor units.
    used: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    costs: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    #: What was billed of a period before a restore that forgot a part of it.
    told: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    #: Before that, an event that is on its way may change the tokens.
    rests_until: datetime = START

    @property
    def name(self) -> str:
        return f"{self.habit} {str(self.owner)[:4]}"

    def period_of(self, moment: datetime) -> int:
        assert self.began is not None
        passed = relativedelta(moment, self.began)
        return passed.years * 12 + passed.months


class Way(Protocol):
    """How the customers of a mesh pay."""

    name: str
    #: What customers do beside paying for a plan and using it, in turn.
    habits: tuple[str, ...]
    #: What may wait for an administrator.
    forged: set[str]
    #: How many payments went back, wholly or in part, for ever or not.
    taken_back: int

    def opened(self) -> AbstractAsyncContextManager[PaymentProvider | None]:
        """What a gateway opens when it starts."""

    async def act(self, quarter: "Quarter", customer: Customer) -> None:
        """Do what the customer does on this day beside using the plan."""

    async def buy_now(self, quarter: "Quarter", customer: Customer) -> None:
        """Buy credits and pay them at once."""

    async def tell(self, quarter: "Quarter") -> None:
        """Do what the outside does at this hour: the bank, or a provider with its webhooks."""

    async def restored(self, quarter: "Quarter", since: datetime) -> None:
        """Do what the runbooks want of an administrator after a restore."""

    async def account(self, quarter: "Quarter", customer: Customer) -> Account:
        """Return what the books say of a customer."""


class Killed(BaseException):
    """A gateway ends here, as by kill -9."""


class Killer:
    """Ends a gateway before or after one of its statements or calls. Only tasks that ``mortal`` runs die."""

    def __init__(self, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.kills = 0
        self._rng = rng
        self._left: ContextVar[list[int]] = ContextVar("left")
        for name in ("row", "rows", "value", "run"):
            patch.setattr(transactions.Transaction, name, self.dying(getattr(transactions.Transaction, name)))

    def dying(self, method: Any) -> Any:
        async def step(*args: Any) -> Any:
            self._count()
            found = await method(*args)
            self._count()
            return found

        return step

    def _count(self) -> None:
        left = self._left.get(None)
        if left is not None:
            left[0] -= 1
            if left[0] == 0:
                self.kills += 1
                raise Killed

    async def mortal(self, work: Awaitable[object]) -> bool:
        """Return whether the work was done. What a peer refuses is done later, too."""

        async def run() -> bool:
            if self._rng.random() < _KILL_SHARE:
                self._left.set([self._rng.randrange(1, _MAX_STEPS)])
            try:
                await work
            except (Killed, errors.Unavailable):
                return False
            return True

        return await asyncio.create_task(run())


class Auth:
    """What auth knows and mails: it isn't restored with the gateway's database."""

    def __init__(self) -> None:
        self.plans: dict[TenantId, str] = {}
        self.subjects: set[tuple[TenantId, str]] = set()
        self.mails: list[tuple[TenantId, str]] = []
        self.failed_mails: Counter[TenantId] = Counter()

    async def add(self, request: AddNotice) -> Nothing:
        key = (request.owner, request.subject)
        if key not in self.subjects:
            self.subjects.add(key)
            self._mail(request)
        return Nothing()

    def _mail(self, request: AddNotice) -> None:
        match request.notice:
            case PaymentLate(invoice=None):
                self.failed_mails[request.owner] += 1
            case PaymentLate() as late:
                # The first two reminders say the same.
                ordinal = sum(text.startswith(f"{late.invoice} ") and "last" not in text for _, text in self.mails) + 1
                self.mails.append((request.owner, f"{late.invoice} {'last' if late.is_last else min(ordinal, 2)}"))
            case LimitUsed() as used:
                # A balance may fall again after each top-up, and an allowance be used up again when a plan comes back.
                self.mails.append((request.owner, f"{used.of} {used.percent} % {request.subject}"))


class Quarter:
    def __init__(
        self, stored: RestorableGateway, way: Way, scale: Scale, seed: int, patch: pytest.MonkeyPatch, *,
        now: Callable[[datetime], None] = lambda _moment: None,
    ) -> None:  # fmt: skip
        """``now`` learns the time when it is set."""
        self.rng = random.Random(seed)
        self.stored, self.way, self.scale = stored, way, scale
        self.killer = Killer(random.Random(seed + 1), patch)
        self.auth = Auth()
        self.start_at = self.moment = START
        self.documents: defaultdict[str, set[str]] = defaultdict(set)
        self.void: dict[str, str] = {}
        self.restores = 0
        self._set_now = now
        self._entered = AsyncExitStack()
        habits = [way.habits[number % len(way.habits)] for number in range(scale.customers)]
        self.customers = [
            Customer(TenantId(UUID(int=self.rng.getrandbits(128), version=4)), habit, self.rng.randrange(0, 12)) for habit in habits
        ]
        # The first month of one who spends ends between a copy and its return. It has 28 days.
        self.customers[0].day = scale.restores[0][0] - 27

    # --- gateways -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        gateway = await self._entered.enter_async_context(self.stored.running())
        provider = await self._entered.enter_async_context(self.way.opened())
        self.books: Books = gateway.books
        self.shop = Shop(gateway.database, gateway.live, self.stored.url)
        self.shop.plans = self.auth.plans
        self.shop.rpc.answers[notices.add_notice.name] = self.auth.add
        for name in [name for name in _CALLS if hasattr(provider, name)]:
            setattr(provider, name, self.killer.dying(getattr(provider, name)))
        self._provider = provider
        self.desks = [self._desk() for _ in range(_GATEWAYS)]
        self.outbox = NoticeOutbox(self.shop.rows, self.shop.rpc, self.shop.items, SELLER.currency, sells=True)

    def _desk(self) -> Billing:
        shop, orders = self.shop, None
        if self._provider is not None:
            orders = ProviderOrders(self.way.name, self._provider, shop.rows, shop.live, SELLER.currency, items=shop.items)
        return Billing(shop.rows, shop.live, shop.rpc, SELLER, orders, items=shop.items)

    async def stop(self) -> None:
        await self._entered.aclose()

    @property
    def desk(self) -> Billing:
        return self.rng.choice(self.desks)

    async def work(self) -> None:
        """Let each gateway do its rounds, until one was not killed."""
        while True:
            done = await asyncio.gather(*(self.killer.mortal(desk.work()) for desk in self.desks), self.killer.mortal(self.outbox.work()))
            if any(done):
                return

    async def until_done(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do what an impatient caller does: repeat a call until it has an answer."""
        answers: list[Any] = []

        async def call() -> None:
            answers.append(await work())

        while not await self.killer.mortal(call()):
            pass
        return answers[0]

    # --- time -----------------------------------------------------------------------------------------------------------

    async def set_time(self, moment: datetime) -> None:
        self.moment = moment
        self._set_now(moment)
        await postgres_clock.set_clock(self.stored.url, moment)

    async def run(self) -> quarter_judge.Quarter:
        self._set_now(self.moment)
        await postgres_clock.install(self.stored.url)
        await self.set_time(START)
        await self.start()
        await self.shop.live.change(lambda *_: PLANS, origin="applied", author=None)
        copies = dict[int, tuple[str, datetime, dict[TenantId, Any]]]()
        for day in range(self.scale.days):
            await self._day(day)
            for copied, replaced in self.scale.restores:
                if day == copied:
                    copies[replaced] = await self._copy()
                elif day == replaced:
                    # A restore is noticed by what the recovery log has since.
                    await self.way.buy_now(self, next(one for one in self.customers if one.habit == "buys"))
                    await self.work()
                    await self._restore(*copies[replaced])
        # Every period of the quarter ends, and every mail is sent.
        for day in range(self.scale.days, self.scale.days + _REST_DAYS):
            await self._rest(day)
        for customer in self.customers:
            await self._use_rest(customer, timedelta(days=32))
        return await self._judge()

    async def _day(self, day: int) -> None:
        for hour in (0, 9):
            await self.set_time(START + timedelta(days=day, hours=hour, minutes=self.rng.randrange(60)))
            for customer in self.rng.sample(self.customers, len(self.customers)):
                if customer.day <= day:
                    await self._act(customer)
            await self.way.tell(self)
            await self.work()
            await self._look()

    async def _rest(self, day: int) -> None:
        await self.set_time(START + timedelta(days=day))
        for customer in self.customers:
            await self._use_rest(customer, timedelta(hours=25))
        await self.way.tell(self)
        await self.work()
        await self._look()

    async def _copy(self) -> tuple[str, datetime, dict[TenantId, Any]]:
        await self.stop()
        copy = await self.stored.restore_point()
        await self.start()
        return copy, self.moment, {one.owner: (deepcopy(one.used), deepcopy(one.costs)) for one in self.customers}

    async def _restore(self, copy: str, copied_at: datetime, known: dict[TenantId, Any]) -> None:
        """Replace the database. What customers have used since the copy is lost, and what was billed of it stays billed."""
        while await self.shop.fetch("SELECT count(*) FROM owed"):
            await self._work_later()
        for one in self.customers:
            if one.began is not None:
                for period in range(one.period_of(self.moment)):
                    one.told[period] = max(one.told[period], one.costs[period])
            one.used, one.costs = known[one.owner]
        await self._look()
        await self.stop()
        self.stored.url = copy
        await self.set_time(self.moment)
        await self.start()
        assert await self.shop.fetch("SELECT count(*) FROM database_restores") == self.restores + 1
        self.restores += 1
        await self.way.restored(self, copied_at)
        for _ in range(3):
            await self._work_later()
        await self._look()

    async def _work_later(self) -> None:
        # What a killed gateway had taken is free again after two minutes.
        await self.set_time(self.moment + timedelta(minutes=3))
        await self.work()

    # --- customers ------------------------------------------------------------------------------------------------------

    async def _act(self, customer: Customer) -> None:
        await self.way.act(self, customer)
        if customer.began is None:
            return
        period = customer.period_of(self.moment)
        age = self.moment - (customer.began + relativedelta(months=period))
        # Just after a month's end, which of the two the ledger counts depends on when it heard of the first payment.
        is_clear = period == 0 or age > timedelta(hours=36)
        if is_clear and self.moment >= customer.rests_until and self.rng.random() < 0.4:
            await self._use(customer, self.rng.randrange(20, 300), beyond=customer.habit == "spends")
        await self._use_rest(customer, timedelta(hours=16))

    async def _use_rest(self, customer: Customer, ahead: timedelta) -> None:
        """Leave no tokens behind if the period ends soon, so that what was used is what was given."""
        if customer.began is None or self.moment < customer.rests_until:
            return
        if customer.period_of(self.moment + ahead) > customer.period_of(self.moment):
            await self._use(customer, 1_000_000, beyond=False)

    async def _use(self, customer: Customer, tokens: int, *, beyond: bool) -> None:
        """Send a request; if not ``beyond`` the plan, only what it still covers."""
        owner, request = UserId(customer.owner), RequestId(UUID(int=self.rng.getrandbits(128), version=4))
        if plan_names.name_of(self.shop.plan_of(customer.owner)) != "pro":
            return
        plan = self.shop.live.config.limits.plan_of(self.shop.plan_of(customer.owner))
        spending = Spending(plan.included_tokens, plan.overage_micro, has_plan=True)
        if not beyond:
            allowance = (await self.shop.ledger.read_account(customer.owner, spending)).allowance
            tokens = min(tokens, 0 if allowance is None else (allowance.included or 0) - allowance.used)
        if tokens <= 0:
            return
        granted = await self.books.reserve(owner, tokens=tokens, request=request, prompt_tokens=0, spending=spending, price=PRICE)
        if isinstance(granted, InsufficientCredits):
            return
        cost = (tokens - granted.plan_tokens) * TOKEN_MICRO
        ended = msgspec.structs.replace(row(owner, request, cost), covered_tokens=granted.plan_tokens)
        await self.books.requests.write_requests([ended])
        customer.used[customer.period_of(self.moment)] += granted.plan_tokens
        if cost:
            customer.costs[customer.period_of(self.moment)] += cost // TOKEN_MICRO

    # --- the judge ------------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Remember every document that somebody may have seen."""
        for found in await self.fetch(
            "SELECT number, document::text, reference, coalesce(void_by = number, false) AS is_lost FROM invoices"
        ):
            if found["is_lost"]:
                self.void[found["number"]] = found["reference"]
            else:
                self.documents[found["number"]].add(found["document"])

    async def fetch(self, sql: str, *args: object) -> list[Any]:
        connection = await postgres_clock.connect(self.stored.url)
        try:
            return list(await connection.fetch(sql, *args))
        finally:
            await connection.close()

    async def _judge(self) -> quarter_judge.Quarter:
        accounts = {one.owner: await self._account(one) for one in self.customers}
        findings = [str(found) for found in (await self.shop.ledger.verify(grace_seconds=1)).findings]
        findings += [
            f"{one.kind} {one.id} waits: {one.error}" for one in await self.shop.deferred.list(None, 100) if one.id not in self.way.forged
        ]
        outside = Outside(documents=self.documents, void=self.void, mails=self.auth.mails)
        return quarter_judge.Quarter(accounts=accounts, outside=outside, findings=findings)

    async def _account(self, customer: Customer) -> Account:
        owner, account = customer.owner, await self.way.account(self, customer)
        given = await self.fetch(
            "SELECT sum(amount_micro)::bigint FROM entries WHERE owner = $1 AND kind = 'top_up' AND account = 'balance'", owner
        )
        invoices = await self.shop.invoices(owner)
        by_purpose = Counter(one.document.purpose for one in invoices)
        account.given = (given[0][0] or 0) // TOKEN_MICRO
        account.tokens = {period: tokens for period, tokens in sorted(customer.used.items()) if tokens}
        account.owed = sum(max(customer.costs[period], customer.told[period]) for period in {*customer.costs, *customer.told})
        account.billed += sum(one.document.net_minor for one in invoices if one.document.purpose is InvoicePurpose.OVERAGE)
        account.fees = by_purpose[InvoicePurpose.PLAN]
        account.failed_mails = self.auth.failed_mails[owner]
        return account
