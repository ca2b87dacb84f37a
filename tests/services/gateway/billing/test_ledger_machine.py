"""The ledger's SQL compared with a short Python model, in tokens and in money, through any sequence of events."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from services.gateway import store
from services.gateway.billing.ledger_store import AlreadyReverted, LedgerStore
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import ExtendedHold, GrantedReservation, HoldExtension, InsufficientCredits, Spending
from services.gateway.facts.request_record import ReservationState
from services.gateway.store import GatewayStore
from shared.api.auth import Budget
from shared.api.generation import Usage
from shared.api.ledger import ModelPrice
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books, row

INCLUDED = 1000
OVERAGE = 600
BUDGET, OWNER_BUDGET = 700, 1500
PROMPT = 10
OWNERS = 2
UNLIMITED = 1 << 40

numbers = st.integers(0, OWNERS - 1)
amounts = st.integers(0, 1500)
prices = st.builds(
    lambda fixed, each, weight: Price(
        1,
        ModelPrice(
            None,
            MicroCredits(each[0] * 1_000_000),
            MicroCredits(each[1] * 1_000_000),
            request_micro=MicroCredits(fixed),
            allowance_weight=weight,
        ),
    ),
    st.sampled_from([0, 0, 50, 400]),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([0, 1, 1, 3]),
)


@dataclass
class Account:
    included: int | None = INCLUDED
    left: int = 0
    granted: int = 0
    held: int = 0
    balance: int = 0
    reserved: int = 0
    spent: int = 0
    #: A budget counts from its first request.
    has_budget: bool = False
    key_spent: int = 0
    key_reserved: int = 0

    def grant(self) -> None:
        more = max(0, (self.included or 0) - self.granted)
        self.left += more
        self.granted += more

    def coverable(self, weight: int) -> int:
        if weight == 0:
            return 0
        return UNLIMITED if self.included is None else max(0, self.left - self.held) // weight

    def room(self, *, with_key: bool, with_budget: bool) -> int:
        room = self.balance + OVERAGE - self.reserved
        room = min(room, OWNER_BUDGET - self.spent - self.reserved) if with_budget else room
        room = min(room, BUDGET - self.key_spent - self.key_reserved) if with_key else room
        return max(0, room)


@dataclass
class Reservation:
    owner: int
    with_key: bool
    with_budget: bool
    price: Price
    held: int
    plan: int
    tokens: int
    cost: int | None = None
    used: int = 0
    #: Of the account's periods, when it ended.
    period: int = 0
    reverted: bool = False

    def rest(self, tokens: int, covered: int) -> int:
        return self.price.cost(PROMPT, tokens, 0, covered)


class Machine(RuleBasedStateMachine):
    """Applies every step to the SQL and to the model."""

    #: Set for each test: Hypothesis creates the machines.
    runner: asyncio.Runner
    books: Books

    def __init__(self) -> None:
        super().__init__()
        self.owners = [UserId(uuid4()) for _ in range(OWNERS)]
        self.keys = [KeyId(uuid4()) for _ in range(OWNERS)]
        self.accounts = [Account() for _ in range(OWNERS)]
        self.periods = [0] * OWNERS
        self.reservations: dict[RequestId, Reservation] = {}
        for number in range(OWNERS):
            self.accounts[number].grant()
            self.run(self.books.ledger.read_account(self.owners[number], self.spending(number)))

    def run(self, what: Any) -> Any:
        return self.runner.run(what)

    def some(self, number: int) -> RequestId:
        return list(self.reservations)[number % len(self.reservations)]

    def spending(self, number: int, *, with_key: bool = False, with_budget: bool = False) -> Spending:
        return Spending(
            self.accounts[number].included,
            MicroCredits(OVERAGE),
            has_plan=True,
            key_budget=Budget(MicroCredits(BUDGET)) if with_key else None,
            owner_budget=Budget(MicroCredits(OWNER_BUDGET), "month") if with_budget else None,
        )

    @rule(
        number=numbers,
        tokens=st.integers(0, 1200),
        least=st.integers(0, 300),
        price=prices,
        with_key=st.booleans(),
        with_budget=st.booleans(),
    )
    def reserve(self, number: int, tokens: int, least: int, price: Price, *, with_key: bool, with_budget: bool) -> None:
        account, request = self.accounts[number], RequestId(uuid4())
        account.grant()
        wanted = msgspec.structs.replace(
            self.books.wanted(self.owners[number], request, tokens),
            least_tokens=least,
            price=price,
            allowance_weight=price.price.allowance_weight,
            spending=self.spending(number, with_key=with_key, with_budget=with_budget),
            key_id=self.keys[number] if with_key else None,
        )
        (answer,) = self.run(self.books.ledger.reserve([wanted], gateway=GATEWAY, lease_seconds=90))
        if account.balance + OVERAGE < 0:
            # Credits were taken back: nothing is sent before they are paid, and nothing else of the account changes.
            assert answer == InsufficientCredits(MicroCredits(account.balance + OVERAGE), "debt")
            return
        if with_budget and not account.has_budget:
            account.has_budget, account.spent = True, 0
        coverable, room = account.coverable(price.price.allowance_weight), account.room(with_key=with_key, with_budget=with_budget)
        reservation = Reservation(number, with_key, with_budget, price, 0, 0, tokens)
        granted = self.most_tokens(reservation, tokens, coverable, room)
        if granted < min(least, tokens):
            assert isinstance(answer, InsufficientCredits)
            assert answer.room_micro == room
            return
        covered = min(PROMPT + granted, coverable)
        reservation.tokens, reservation.plan = granted, covered * price.price.allowance_weight
        reservation.held = reservation.rest(granted, covered)
        assert answer == GrantedReservation(granted, reservation.plan)
        self.hold(account, reservation, reservation.held, reservation.plan)
        self.reservations[request] = reservation

    @staticmethod
    def most_tokens(reservation: Reservation, tokens: int, coverable: int, room: int) -> int:
        """Return how many the account can pay, up to ``tokens``, by trying; -1 for not even the prompt."""
        low, high = -1, tokens
        while low < high:
            middle = (low + high + 1) // 2
            if reservation.rest(middle, min(PROMPT + middle, coverable)) <= room:
                low = middle
            else:
                high = middle - 1
        return low

    @staticmethod
    def hold(account: Account, reservation: Reservation, micro: int, tokens: int) -> None:
        account.reserved += micro
        account.held += tokens
        account.key_reserved += micro if reservation.with_key else 0

    @precondition(lambda self: self.reservations)
    @rule(which=st.integers(0, 50), tokens=st.integers(0, 1500), least=st.integers(1, 300), again=st.booleans())
    def extend(self, which: int, tokens: int, least: int, again: bool) -> None:
        request = self.some(which)
        held = self.reservations[request]
        account, weight = self.accounts[held.owner], held.price.price.allowance_weight
        extension = HoldExtension(
            request_id=request, owner=self.owners[held.owner], max_tokens=tokens, least_more=least, answers=1, price=held.price,
            spending=self.spending(held.owner, with_key=held.with_key, with_budget=held.with_budget),
        )  # fmt: skip
        for _ in range(2 if again else 1):
            (answer,) = self.run(self.books.ledger.extend_holds([extension]))
            if held.cost is not None:
                assert answer == ExtendedHold(None)
                return
            account.grant()
            before_covered = held.plan // weight if weight else 0
            coverable = before_covered + account.coverable(weight)
            before = held.rest(held.tokens, before_covered)
            room = account.room(with_key=held.with_key, with_budget=held.with_budget)
            more = self.most_tokens(held, tokens, coverable, room + before) - held.tokens
            if more >= least:
                held.tokens += more
                covered = max(before_covered, min(PROMPT + held.tokens, coverable))
                micro, plan = max(0, held.rest(held.tokens, covered) - before), max(held.plan, covered * weight) - held.plan
                held.held += micro
                held.plan += plan
                self.hold(account, held, micro, plan)
            assert answer == ExtendedHold(held.tokens, held.plan)

    @precondition(lambda self: self.reservations)
    @rule(
        which=st.lists(
            st.tuples(st.integers(0, 50), st.integers(0, PROMPT), st.sampled_from([0, 0.3, 0.9, 1]), amounts), min_size=1, max_size=4
        ),
        state=st.sampled_from(ReservationState),
    )
    def settle(self, which: list[tuple[int, int, float, int]], state: ReservationState) -> None:
        """Settle requests, including settled ones and the same one twice in a batch; some for more than they hold."""
        chosen = {self.some(number): use for number, *use in which}
        rows = []
        for request, (prompt, part, extra) in chosen.items():
            reservation = self.reservations[request]
            usage = Usage(int(prompt), int(reservation.tokens * part))
            cost, covered = reservation.price.settle(usage, 0, reservation.plan)
            if reservation.cost is None and part < 1:
                # What was held is always enough for what was used.
                assert cost <= reservation.held
            cost += extra if part == 1 else 0
            written = row(self.owners[reservation.owner], request, cost)
            rows.append(msgspec.structs.replace(written, reservation=state, covered_tokens=covered))
            if reservation.cost is None:
                account = self.accounts[reservation.owner]
                reservation.cost, reservation.used = min(cost, reservation.held), min(covered, reservation.plan)
                reservation.period = self.periods[reservation.owner]
                self.hold(account, reservation, -reservation.held, -reservation.plan)
                account.balance -= reservation.cost
                account.left -= reservation.used
                account.spent += reservation.cost
                account.key_spent += reservation.cost if reservation.with_key else 0
        self.run(self.books.requests.write_requests([*rows, rows[0]]))

    @rule(number=numbers, amount=st.integers(-500, 2000).filter(bool), again=st.booleans())
    def top_up(self, number: int, amount: int, again: bool) -> None:
        transfer = RequestId(uuid4())
        for first in (True, False) if again else (True,):
            done = self.run(self.books.ledger.top_up(transfer, self.owners[number], MicroCredits(amount), "", self.spending(number)))
            assert done == first
        self.accounts[number].balance += amount
        self.accounts[number].grant()

    @precondition(lambda self: self.reservations)
    @rule(which=st.integers(0, 50))
    def revert(self, which: int) -> None:
        request = self.some(which)
        reservation = self.reservations[request]
        # Tokens of a period that is over are lost.
        used = reservation.used if reservation.period == self.periods[reservation.owner] else 0
        if not reservation.cost and not used:
            assert self.run(self.books.ledger.revert(request, "")) is None
            return
        if reservation.reverted:
            with pytest.raises(AlreadyReverted):
                self.run(self.books.ledger.revert(request, ""))
            return
        assert self.run(self.books.ledger.revert(request, "")) == self.owners[reservation.owner]
        account, cost = self.accounts[reservation.owner], reservation.cost or 0
        reservation.reverted = True
        account.balance += cost
        account.left += used
        account.spent = max(0, account.spent - cost)
        account.key_spent -= cost if reservation.with_key else 0

    @rule(number=numbers, included=st.sampled_from([0, 500, INCLUDED, 3000, None]))
    def change_plan(self, number: int, included: int | None) -> None:
        self.accounts[number].included = included
        self.accounts[number].grant()

    @rule(number=numbers)
    def end_period(self, number: int) -> None:
        """A month passes: tokens are lost, and debts are billed."""
        owner, account = self.owners[number], self.accounts[number]
        self.run(self.books.execute(f"UPDATE accounts SET anchor = now(), period_end = now() WHERE owner = '{owner}'"))
        self.run(self.books.ledger.read_account(owner, self.spending(number)))
        self.periods[number] += 1
        account.left = account.granted = 0
        account.balance = max(0, account.balance)
        account.grant()

    @invariant()
    def both_say_the_same(self) -> None:
        for number, owner in enumerate(self.owners):
            account = self.accounts[number]
            found = self.run(self.books.ledger.read_account(owner, self.spending(number)))
            account.grant()
            assert (found.balance_micro, found.reserved_micro, found.spent_micro) == (account.balance, account.reserved, account.spent)
            assert (found.allowance.used, found.allowance.held) == (account.granted - account.left, account.held)

    def teardown(self) -> None:
        report = self.run(self.books.report())
        assert report.findings == ()
        assert report.sum_micro == 0


def test_the_ledger_balances_after_any_sequence_of_operations(postgres: PostgresServer) -> None:
    with asyncio.Runner() as runner:
        url = postgres.url(runner.run(postgres.new_database()))

        async def opened() -> tuple[Any, Books]:
            context = store.opened(url)
            database = await context.__aenter__()
            return context, Books(GatewayStore(database), LedgerStore(database), url)

        context, books = runner.run(opened())
        runner.run(books.ledger.ensure_default_price(1, 1))
        Machine.runner, Machine.books = runner, books
        limits = settings(
            max_examples=settings.default.max_examples // 2, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        )
        try:
            run_state_machine_as_test(Machine, settings=limits)
        finally:
            runner.run(context.__aexit__(None, None, None))
