"""Gateways and PostgreSQL that die, and a database that is restored, while accounts spend, buy, want their money back and are billed, with
a payment provider and a receiver of usage that fail at random: F30.

What was paid and kept is credited once, what was used is exported once, and what is owed is billed once.
"""

import asyncio
import json
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx

from shared import currency
from shared.limits import BY_NAME
from shared.timing import restart_policy
from shared.types import Credential, MicroCredits, UserId
from tests import people
from tests.chaos import clients, gateway_copy, hasty_gateway, invariants, ledger, world
from tests.chaos.invariants import Allowed
from tests.chaos.ledger import Money
from tests.chaos.scenarios_servers import READY_SECONDS
from tests.chaos.world import AWAY, Outcome, World
from tests.features.usage_export.gateway.test_sinks import Receiver
from tests.people import Person
from tests.replicas import Replica
from tests.services.gateway.payments import stripe_server
from tests.services.gateway.payments.stripe_server import StripeServer
from tests.stacks import until

T = TypeVar("T")

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
#: What payments are that aren't those of their orders.
FORGED = ({"amount_total": 0}, {"amount_total": -TOP_UP_MINOR}, {"amount_total": TOP_UP_MINOR - 1}, {"currency": "jpy"})
#: An account has so many unpaid orders at most, less some.
MAX_FORGED = 3
LATE_SHARE = 0.3
PARTS = ("gateway", "postgres", "provider")


@dataclass(slots=True)
class _Forgotten:
    """What the world knows, and a restored database doesn't."""

    #: Requests that may have been exported.
    requests: set[UUID] = field(default_factory=set)
    #: Minor units that each customer was billed, by the order.
    billed: dict[UserId, dict[str, int]] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Market:
    world: World
    gateways: list[Replica]
    provider: StripeServer
    receiver: Receiver
    #: They pay by card, and by invoice.
    by_card: list[Person]
    by_invoice: list[Person]
    #: The payments of each for credits, and the subscription.
    bought: defaultdict[UserId, list[str]] = field(default_factory=lambda: defaultdict(list))
    subscriptions: dict[UserId, str] = field(default_factory=dict)
    #: Open ones, and payments that paid nothing.
    disputes: list[str] = field(default_factory=list)
    forged: set[str] = field(default_factory=set)
    #: Objects of which the provider tells later.
    late: list[str] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    #: Nothing is broken, and no month ends, while somebody holds it.
    calm: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Customers use the mesh.
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    #: When each customer's months ended.
    ends: defaultdict[UserId, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    forgotten: _Forgotten = field(default_factory=_Forgotten)
    #: Whose month has ended since the copy that is put back: one of each, as months are longer than backups are old.
    ended_since: set[UserId] | None = None

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
        """Let the provider send its webhooks, in any order, and some twice."""
        for object_id in self.world.rng.sample((*objects, self.world.rng.choice(objects)), len(objects) + 1):
            await self._send(*self.provider.signed(object_id), status=200)

    async def _send(self, body: bytes, signature: str, *, status: int) -> None:
        async def takes() -> bool:
            return (await self._post("/webhooks/stripe", body, **{"stripe-signature": signature})).status_code == status

        await until(takes, seconds=END_SECONDS, what=f"a webhook is answered with {status}", ignoring=AWAY)

    async def tell_some_time(self, object_id: str) -> None:
        """Tell of an object now, or after what happens to it next."""
        if self.world.rng.random() < LATE_SHARE:
            self.late.append(object_id)
        else:
            await self.tell(object_id)

    async def tell_late(self) -> None:
        told, self.late = self.late, []
        if told:
            await self.tell(*told)

    async def subscribe(self, person: Person) -> None:
        order = await self.ask(person.key.secret, "/api/billing/plan", {"plan": "pro"})
        session = order["url"].rpartition("/")[2]
        self.subscriptions[person.id] = await self.provider.pay(session)
        await self.tell(session, self.subscriptions[person.id])

    async def buy(self, person: Person, change: dict[str, Any] | None = None) -> None:
        """``change``: what the payment is in place of the order's; then it gives nothing."""
        order = await self.ask(person.key.secret, "/api/billing/top-ups", {"amount": "5"}, **{"idempotency-key": str(uuid4())})
        session = order["url"].rpartition("/")[2]
        await self.provider.pay(session)
        if change is None:
            self.bought[person.id].append(session)
        else:
            self.provider.sessions[session] |= change
            self.forged.add(session)
        await self.tell_some_time(session)

    async def take_back(self, person: Person) -> None:
        """Decide a dispute, and let the provider give a part of a payment back, or the bank all of it until the dispute is decided."""
        rng = self.world.rng
        if self.disputes:
            decided = self.disputes.pop()
            self.provider.tell_of(decided, status=rng.choice(["won", "lost"]))
            await self.tell_some_time(decided)
        payment = rng.choice([one for one in self.bought[person.id] if self.provider.kept(one) == TOP_UP_MINOR] or [""])
        if payment and len(self.provider.disputes) > len(self.provider.refunds):
            await self.tell_some_time(self.provider.refund(payment, rng.choice([1, 200, TOP_UP_MINOR])))
        elif payment:
            self.disputes.append(self.provider.dispute(payment, TOP_UP_MINOR))
            await self.tell_some_time(self.disputes[-1])

    async def forge(self) -> None:
        """Send what is not signed, and what is none of the mesh's business."""
        rng, known = self.world.rng, self.world.rng.choice([*self.provider.sessions.values()])
        for secret, age in (("whsec_of_another_account", 0), (stripe_server.SECRET, 3600)):
            await self._send(*self.provider.signed(known["id"], secret=secret, age=age), status=400)
        for number, metadata in enumerate(({}, known["metadata"] | {"mesh": "https://another.example/billing"})):
            name = f"cs_test_forged_{len(self.forged)}_{number}"
            self.provider.sessions[name] = known | {"id": name, "metadata": metadata, "payment_status": "paid", "subscription": None}
            self.provider.sessions[name]["payment_intent"] = f"pi_{name}"
            self.forged.add(name)
            await self.tell(name, f"cs_test_of_nobody_{rng.getrandbits(32)}")

    async def use(self, person: Person) -> None:
        """Ask one question after another until canceled."""
        body = {"model": clients.MODEL, "messages": [{"role": "user", "content": WORDS}]}
        while True:
            await self.is_open.wait()
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
                await self.take_back(person)
            if person in self.buyers and months <= MAX_FORGED:
                await self.buy(person, self.world.rng.choice(FORGED))
                await self.forge()
            await asyncio.sleep(self.world.rng.uniform(*MONTH_SECONDS))
            await self._until(lambda: self._may_end(person), "another month may end")
            async with self.calm:
                self.ends[person.id].append(await self._until(lambda: ledger.end_month(self.world.stack, person.id), "a month ends"))
                if self.ended_since is not None:
                    self.ended_since.add(person.id)
            if person.id in self.subscriptions:
                await self.provider.renew(self.subscriptions[person.id])
                await self.tell(self.subscriptions[person.id])
            await self._until(lambda: self._is_billed(person), "the month is billed")
            self._age_meters()
            await self.tell_late()

    async def _is_billed(self, person: Person) -> bool:
        # A database that was just put back doesn't know yet which months are over.
        async with self.calm:
            return await ledger.is_billed(self.world.stack, person.id)

    def _age_meters(self) -> None:
        """Meters sum whole minutes, in which months of seconds can't be told apart."""
        for event in self.provider.meter_events.values():
            event["timestamp"] = int(event["timestamp"]) - 3600

    async def _may_end(self, person: Person) -> bool:
        return self.ended_since is None or person.id not in self.ended_since

    async def pay_late(self, person: Person) -> None:
        """Let a plan end because its fee isn't paid, and then pay: the plan comes back."""
        stack = self.world.stack

        async def has(plan: str) -> bool:
            return await ledger.read_plan(stack, person.id) == plan

        async with self.calm:
            self.ends[person.id].append(await self._until(lambda: ledger.end_month(stack, person.id), "a month ends"))
        number = await self._until(lambda: ledger.find_open_invoice(stack, person.id), "the fee is billed")
        await self._until(lambda: ledger.be_late(stack, number), "three weeks pass")
        await self._until(lambda: has("free"), "the plan ends")
        for _ in range(2):
            await self.ask(stack.api_key, "/api/billing/payments", {"invoice": number, "reference": f"wire for {number}"})
        await self._until(lambda: has("house"), "the plan is back")

    async def _until(self, done: Callable[[], Awaitable[T | None]], what: str) -> T:
        return await until(done, seconds=END_SECONDS, what=what, ignoring=AWAY)

    # --- faults

    async def restore(self, file: Path) -> None:
        """Copy the gateway's tables, and put them back a little later. Everybody outside goes on meanwhile."""
        stack, owners = self.world.stack, [person.id for person in self.customers]
        async with self.calm:
            restores = await ledger.count_restores(stack)
            await gateway_copy.copy(stack, file)
            # Counted before, they could be in the copy, too: gateways go on to bill.
            lines = await ledger.count_log_lines(stack)
            self.ended_since = set()
        await asyncio.sleep(self.world.rng.uniform(*MONTH_SECONDS))
        await self.buy(self.buyers[0])
        await self.tell_late()

        async def is_noticeable() -> bool:
            return await ledger.count_log_lines(stack) > lines

        # A gateway sees by the recovery log that its database is older.
        await self._until(is_noticeable, "something is in the recovery log since the copy")
        async with self.calm:
            self.is_open.clear()
            # As the runbook says: each has a log of its own, and only the last one to end knows all lines.
            for gateway in self.gateways:
                gateway.process.terminate()
                await gateway.ended()
            before = await ledger.read_money(stack, owners)
            await gateway_copy.put_back(stack, file)
            after = await ledger.read_money(stack, owners)
            for person in self.customers:
                used = before.used[person.id]
                self.forgotten.requests |= {key for key, one in used.items() if after.used[person.id].get(key) != one}
                self.forgotten.billed[person.id] = _billed(person, self, before)
            self.forgotten.documents = before.documents
            self._age_meters()
            for gateway in reversed(self.gateways):
                await gateway.restart()
            for owner in owners:
                await ledger.end_months_again(stack, owner, self.ends[owner])
            found = await ledger.count_restores(stack) - restores
            assert found == 1, f"the first gateway has noticed it, and the second had nothing to add: {found}"
            self.ended_since = None
            self.is_open.set()
        self.broken["restore"] += 1

    async def break_one(self, part: str) -> None:
        """Break a gateway, PostgreSQL, or the next call of the provider."""
        async with self.calm:
            await self._break(part)

    async def _break(self, part: str) -> None:
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
    with tempfile.TemporaryDirectory(prefix="aimesh-copy-") as folder:
        return await _run(world, Path(folder))


async def _run(world: World, folder: Path) -> Outcome:
    async with _opened(world) as market:
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            using = [tasks.create_task(market.use(person)) for person in market.customers * 2]
            storm = tasks.create_task(_storm(market))
            await asyncio.gather(*(market.subscribe(person) for person in market.by_card), market.pay_late(market.by_invoice[0]))
            restored = tasks.create_task(market.restore(folder / "gateway.dump"))
            await asyncio.gather(*(market.live(person) for person in market.customers), restored)
            await market.tell_late()
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
        market.is_open.set()
        for person in market.by_invoice:
            await market.ask(stack.api_key, "/api/billing/plan", {"plan": "house", "owner": str(person.id)})
        yield market


# --- the judge -----------------------------------------------------------------------------------------------------------


async def _judge(market: _Market, began: float, ended_at: float) -> Outcome:
    stack, owners = market.world.stack, [person.id for person in market.customers]

    async def read_exported() -> Money | None:
        """Requests whose callers left end a little later: nothing may have been added while the exports were looked at."""
        found = await ledger.read_money(stack, owners)
        is_whole = await ledger.is_exported(stack) and (await ledger.read_money(stack, owners)).used == found.used
        return found if is_whole else None

    money = await until(read_exported, seconds=END_SECONDS, what="all usage is exported", ignoring=AWAY)
    books = await ledger.read(stack, owners)
    wrong = invariants.violations([], books, Allowed())
    for person in market.customers:
        wrong += _of_usage(person, market, money)
        wrong += _of_bills(person, market, money)
    numbers = sorted(int(number.rpartition("-")[2]) for number in money.documents)
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append(f"F30: the invoices' numbers are {numbers}")
    changed = [number for number, document in market.forgotten.documents.items() if money.documents.get(number) != document]
    wrong += [f"F30: the invoice {number} was sent, and is another one since the restore" for number in changed]
    wrong += [f"F30: {kind} {item} waits" for kind, item in await ledger.list_deferred(stack) if item not in market.forged]
    wrong += await market.world.verify()
    return Outcome(
        fault="F30",
        what=f"{market.world.scale.months} months of {len(owners)} customers while gateways and PostgreSQL are killed, the database is"
        " restored, and Stripe fails",
        calls=len(books.logged),
        ends=dict(Counter(row.status for row in books.logged.values())),
        failing_seconds=0,
        longest_pause=0,
        recovered_seconds=ended_at - began,
        books=books.summary(),
        violations=tuple(wrong),
        more=f"broken: {dict(market.broken)}; {sum(map(len, market.bought.values()))} payments, {len(market.provider.refunds)} refunds,"
        f" {len(market.provider.disputes)} disputes, {len(market.forged)} forged ones, {len(market.provider.meter_events)} meter events,"
        f" {len(numbers)} invoices, {len(market.receiver.stored)} events and {market.receiver.repeats} repeats",
    )


def _of_usage(person: Person, market: _Market, money: Money) -> list[str]:
    """What the receiver has is what the ledger has, but for requests that a restore has lost."""
    forgotten = market.forgotten.requests
    mine = [event for event in market.receiver.stored.values() if str(event.subject) == str(person.id) and event.id not in forgotten]
    found = (sum(event.data.tokens for event in mine), sum(event.data.cost_micro for event in mine))
    used = [one for key, one in money.used[person.id].items() if key not in forgotten]
    expected = (sum(tokens for tokens, _ in used), sum(micro for _, micro in used))
    return [] if found == expected else [f"F30: {person.username} has used {expected} tokens and micro-credits, and {found} are exported"]


def _billed(person: Person, market: _Market, money: Money) -> dict[str, int]:
    """Return what was billed beyond the plan, by the order."""
    if person not in market.by_card:
        return {str(order): minor for order, minor in money.overage[person.id].items()}
    customer, events = money.customers[person.id], market.provider.meter_events.values()
    return {event["identifier"]: int(event["payload"]["tokens"]) for event in events if event["payload"]["customer"] == customer}


def _of_bills(person: Person, market: _Market, money: Money) -> list[str]:
    name, wrong = f"F30: {person.username}", list[str]()
    kept = currency.micro(sum(market.provider.kept(payment) for payment in market.bought[person.id]), SOLD_IN)
    if sum(money.top_ups[person.id]) != kept:
        wrong.append(f"{name} has paid {kept} and not taken it back, and got {money.top_ups[person.id]}")
    owed = {str(order): minor for order, micro in money.owed[person.id].items() if (minor := currency.minor(MicroCredits(micro), SOLD_IN))}
    # What was billed before the restore stays billed.
    told = market.forgotten.billed.get(person.id, {})
    owed = told | {order: max(minor, told.get(order, 0)) for order, minor in owed.items()}
    billed = _billed(person, market, money)
    # The first period of a plan without a provider is a present of the administrator's.
    expected_fees = 0 if person in market.by_card else len(market.ends[person.id])
    if billed != owed:
        wrong.append(f"{name} owed {owed} and was billed {billed}")
    if (fees := len(money.fees[person.id])) != expected_fees:
        wrong.append(f"{name} has {fees} invoices for {expected_fees} fees")
    if person in market.buyers and not (market.provider.refunds and market.provider.disputes and market.forged):
        wrong.append(f"{name} has taken nothing back: the scenario proves too little")
    if not owed and person not in market.buyers:
        wrong.append(f"{name} has owed nothing: the scenario proves too little")
    return wrong
