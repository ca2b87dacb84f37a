"""Gateways and PostgreSQL that die while accounts spend, buy and are billed, with a payment provider and a receiver of usage that fail at
random: F30.

What was paid is credited once, what was used is exported once, and what is owed is billed once.
"""

import asyncio
import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from shared import currency
from shared.limits import BY_NAME
from shared.timing import restart_policy
from shared.types import Credential, MicroCredits, UserId
from tests import people
from tests.chaos import clients, hasty_gateway, invariants, ledger, world
from tests.chaos.invariants import Allowed
from tests.chaos.ledger import Money
from tests.chaos.scenarios_servers import READY_SECONDS
from tests.chaos.world import AWAY, Outcome, World
from tests.people import Person
from tests.replicas import Replica
from tests.services.gateway.payments import stripe_server
from tests.services.gateway.payments.stripe_server import StripeServer
from tests.services.gateway.usage_export.test_sinks import Receiver
from tests.stacks import until

#: Of each kind of customer.
CUSTOMERS, GATEWAYS = 2, 2
INCLUDED_TOKENS = 20
WORDS = "one two three four five six seven eight nine ten"
UNREACHED = dict.fromkeys(BY_NAME, 10**9)
PLANS = {
    "pro": {
        "fee": 29.0, "for_sale": True, "included_tokens": INCLUDED_TOKENS, "overage_limit": "unlimited", "stripe_price": "price_pro",
        "stripe_meter": "price_tokens", **UNREACHED,
    },
    # For those who pay by invoice.
    "house": {"fee": 5.0, "included_tokens": INCLUDED_TOKENS, "overage_limit": "unlimited", **UNREACHED},
}  # fmt: skip
SOLD_IN, TOP_UP_MINOR = "USD", 500
#: Between two faults, and between two months.
PAUSE_SECONDS, MONTH_SECONDS = (0.5, 3.0), (1.0, 4.0)
MAX_FAULTS = 24
END_SECONDS = 300.0
#: What the receiver does, and how the provider may fail; those that take longer are tested alone.
RECEIVER_FAULTS = ("", "", "500 after it stored", "200 and closes", "500", "dropped", "dropped after it stored")
PROVIDER_FAULTS = ("down", "busy", "lost")
PARTS = ("gateway", "postgres", "provider")


@dataclass(slots=True)
class _Market:
    world: World
    gateways: list[Replica]
    provider: StripeServer
    receiver: Receiver
    #: They pay by card, and by invoice.
    by_card: list[Person]
    by_invoice: list[Person]
    #: How often each has paid for credits.
    bought: Counter[UserId] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)

    @property
    def customers(self) -> list[Person]:
        return [*self.by_card, *self.by_invoice]

    @property
    def buyers(self) -> list[Person]:
        """Return who also pays for credits, and so owes nothing."""
        return self.by_card[:1]

    # --- what customers do

    async def ask(self, credential: Credential, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        """Send an order until a gateway has taken it."""

        async def answer() -> dict[str, Any] | None:
            taken = await self._post(path, json.dumps(body).encode(), authorization=f"Bearer {credential}", **headers)
            assert taken.status_code == 200 or taken.status_code >= 500, taken.text
            return taken.json() if taken.status_code == 200 else None

        return await until(answer, seconds=END_SECONDS, what=f"{path} is answered", ignoring=AWAY)

    async def _post(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        gateway = self.world.rng.choice(self.gateways)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=clients.DEADLINE_SECONDS, trust_env=False) as http:
            return await http.post(path, content=content, headers={"content-type": "application/json", **headers})

    async def tell(self, *objects: str) -> None:
        """Let the provider send its webhooks, and some twice."""
        for object_id in (*objects, self.world.rng.choice(objects)):
            body, signature = self.provider.signed(object_id)

            async def takes(body: bytes = body, signature: str = signature) -> bool:
                return (await self._post("/webhooks/stripe", body, **{"stripe-signature": signature})).status_code == 200

            await until(takes, seconds=END_SECONDS, what="a webhook is taken", ignoring=AWAY)

    async def subscribe(self, person: Person) -> None:
        order = await self.ask(person.key.secret, "/api/billing/plan", {"plan": "pro"})
        session = order["url"].rpartition("/")[2]
        await self.tell(session, await self.provider.pay(session))

    async def buy(self, person: Person) -> None:
        order = await self.ask(person.key.secret, "/api/billing/top-ups", {"amount": "5"}, **{"idempotency-key": str(uuid4())})
        session = order["url"].rpartition("/")[2]
        await self.provider.pay(session)
        self.bought[person.id] += 1
        await self.tell(session)

    async def use(self, person: Person) -> None:
        """Ask one question after another until canceled."""
        body = {"model": clients.MODEL, "messages": [{"role": "user", "content": WORDS}]}
        while True:
            with suppress(*AWAY):
                await self._post("/v1/chat/completions", json.dumps(body).encode(), authorization=f"Bearer {person.key.secret}")
            await asyncio.sleep(clients.RETURN_SECONDS)

    async def live(self, person: Person) -> None:
        """Let some months pass, in which the customer spends and buys."""
        months = 0
        while months < self.world.scale.months or self.broken.keys() < set(PARTS):
            months += 1
            if person in self.buyers:
                await self.buy(person)
            await asyncio.sleep(self.world.rng.uniform(*MONTH_SECONDS))
            await self._until(lambda: ledger.end_month(self.world.stack, person.id), "a month ends")
            await self._until(lambda: ledger.is_billed(self.world.stack, person.id), "the month is billed")

    async def _until(self, done: Callable[[], Awaitable[bool]], what: str) -> None:
        await until(done, seconds=END_SECONDS, what=what, ignoring=AWAY)

    # --- faults

    async def break_one(self, part: str) -> None:
        """Break a gateway, PostgreSQL, or the next call of the provider."""
        match part:
            case "gateway":
                gateway = self.world.rng.choice(self.gateways)
                gateway.kill()
                await gateway.restart()
            case "postgres":
                if not self.world.may_end(part):
                    self.broken[part] += 0
                    return
                await self.world.end(part, signal.SIGKILL, seconds=READY_SECONDS + restart_policy.BACKOFF.longest_seconds)
            case _:
                self.provider.faults.append(self.world.rng.choice(PROVIDER_FAULTS))
        self.broken[part] += 1


async def f30_money_is_exact(world: World) -> Outcome:
    async with _opened(world) as market:
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            using = [tasks.create_task(market.use(person)) for person in market.customers * 2]
            storm = tasks.create_task(_storm(market))
            await asyncio.gather(*(market.subscribe(person) for person in market.by_card))
            await asyncio.gather(*(market.live(person) for person in market.customers))
            storm.cancel()
            for each in using:
                each.cancel()
        market.provider.faults.clear()
        market.receiver.faults = ("",)
        ended_at = time.monotonic()
        await asyncio.gather(*(gateway.ready() for gateway in market.gateways))
        return await _judge(market, began, ended_at)


async def _storm(market: _Market) -> None:
    """Break each part, and then any of them. There is an end: who died while it billed is waited for, and faults would come faster."""
    rng = market.world.rng
    for part in (*rng.sample(PARTS, len(PARTS)), *rng.choices(PARTS, k=MAX_FAULTS - len(PARTS))):
        await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))
        await market.break_one(part)


@asynccontextmanager
async def _opened(running: World) -> AsyncIterator[_Market]:
    """Let two gateways sell and export. Afterward everything is as before."""
    stack, seconds = running.stack, running.scale.bills_seconds
    async with AsyncExitStack() as entered:
        provider, receiver = await entered.enter_async_context(stripe_server.running()), Receiver(running.rng.getrandbits(32))
        receiver.faults = RECEIVER_FAULTS
        folder = Path(entered.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-money-")))
        settings = {
            "MONEY": "on",
            "PAYMENTS": "stripe",
            "CURRENCY": SOLD_IN,
            "STRIPE_API_URL": provider.url,
            "USAGE_EXPORT_URL": await entered.enter_async_context(receiver.serving()),
        }
        for name, secret in (("STRIPE_SECRET_KEY_FILE", stripe_server.KEY), ("STRIPE_WEBHOOK_SECRET_FILE", stripe_server.SECRET)):
            (file := folder / name.lower()).write_text(secret, encoding="ascii")
            settings[name] = str(file)
        plans = folder / "plans.json"
        plans.write_text(json.dumps({"plans": PLANS}), encoding="utf-8")
        applied = await stack.aicli("admin", "config", "apply", "-f", str(plans))
        assert applied.status == 0, applied.err
        async with people.api_client(stack) as api_client:
            customers = [await api_client.register(f"customer{number}") for number in range(2 * CUSTOMERS)]
        haste = {} if seconds is None else {hasty_gateway.BILLS: str(seconds)}
        gateways = await entered.enter_async_context(world.other_gateways(running, GATEWAYS, settings, haste))
        market = _Market(running, gateways, provider, receiver, customers[:CUSTOMERS], customers[CUSTOMERS:])
        for person in market.by_invoice:
            await market.ask(stack.api_key, "/api/billing/plan", {"plan": "house", "owner": str(person.id)})
        yield market


# --- the judge -----------------------------------------------------------------------------------------------------------


async def _judge(market: _Market, began: float, ended_at: float) -> Outcome:
    stack, owners = market.world.stack, [person.id for person in market.customers]

    async def is_exported() -> bool:
        return await ledger.is_exported(stack)

    await until(is_exported, seconds=END_SECONDS, what="all usage is exported", ignoring=AWAY)
    books, money = await ledger.read(stack, owners), await ledger.read_money(stack, owners)
    wrong = invariants.violations([], books, Allowed())
    for person in market.customers:
        wrong += _of_usage(person, market, money)
        wrong += _of_bills(person, market, money)
    numbers = sorted(int(number.rpartition("-")[2]) for number in money.numbers)
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append(f"F30: the invoices' numbers are {numbers}")
    wrong += await market.world.verify()
    return Outcome(
        fault="F30",
        what=f"{market.world.scale.months} months of {len(owners)} customers while gateways and PostgreSQL are killed, and Stripe fails",
        calls=len(books.logged),
        ends=dict(Counter(row.status for row in books.logged.values())),
        failing_seconds=0,
        longest_pause=0,
        recovered_seconds=ended_at - began,
        books=books.summary(),
        violations=tuple(wrong),
        more=f"broken: {dict(market.broken)}; {market.bought.total()} payments, {len(market.provider.meter_events)} meter events,"
        f" {len(numbers)} invoices, {len(market.receiver.stored)} events and {market.receiver.repeats} repeats",
    )


def _of_usage(person: Person, market: _Market, money: Money) -> list[str]:
    """What the receiver has is what the ledger has."""
    events = [event for event in market.receiver.stored.values() if str(event.subject) == str(person.id)]
    found = (sum(event.data.tokens for event in events), sum(event.data.cost_micro for event in events))
    expected = money.used[person.id]
    return [] if found == expected else [f"F30: {person.username} has used {expected} tokens and micro-credits, and {found} are exported"]


def _of_bills(person: Person, market: _Market, money: Money) -> list[str]:
    name, wrong = f"F30: {person.username}", list[str]()
    paid = [currency.micro(TOP_UP_MINOR, SOLD_IN)] * market.bought[person.id]
    if money.top_ups[person.id] != paid:
        wrong.append(f"{name} has paid {paid} and got {money.top_ups[person.id]}")
    owed = {str(order): minor for order, micro in money.owed[person.id].items() if (minor := currency.minor(MicroCredits(micro), SOLD_IN))}
    if person in market.by_card:
        customer = money.customers[person.id]
        events = market.provider.meter_events.values()
        billed = {event["identifier"]: int(event["payload"]["tokens"]) for event in events if event["payload"]["customer"] == customer}
        expected_fees = 0
    else:
        billed = {str(order): minor for order, minor in money.overage[person.id].items()}
        # The first period is a present of the administrator's.
        expected_fees = money.periods[person.id] - 1
    if billed != owed:
        wrong.append(f"{name} owed {owed} and was billed {billed}")
    if (fees := len(money.fees[person.id])) != expected_fees:
        wrong.append(f"{name} has {fees} invoices for {expected_fees} fees")
    if not owed and person not in market.buyers:
        wrong.append(f"{name} has owed nothing: the scenario proves too little")
    return wrong
