"""The ledger's SQL compared with a short Python model, through any sequence of events."""

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
from services.gateway.billing.reservations import ExtendedHold, GrantedReservation, HoldExtension, InsufficientCredits
from services.gateway.facts.request_record import ReservationState
from services.gateway.store import GatewayStore
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books, row

MONTHLY = 1000
BUDGET = 700
OWNERS = 2

numbers = st.integers(0, OWNERS - 1)
amounts = st.integers(0, 1500)


@dataclass
class Account:
    included: int = MONTHLY
    balance: int = 0
    reserved: int = 0
    key_spent: int = 0
    key_reserved: int = 0


@dataclass
class Reservation:
    owner: int
    with_key: bool
    held: int
    tokens: int
    per_token: int
    cost: int | None = None
    reverted: bool = False


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
        self.reservations: dict[RequestId, Reservation] = {}
        for owner in range(OWNERS):
            self.run(self.books.account(self.owners[owner], MONTHLY))

    def run(self, what: Any) -> Any:
        return self.runner.run(what)

    def some(self, number: int) -> RequestId:
        return list(self.reservations)[number % len(self.reservations)]

    @rule(
        number=numbers,
        tokens=st.integers(0, 1200),
        least=st.integers(0, 300),
        price=st.tuples(st.integers(0, 400), st.integers(0, 3)),
        with_key=st.booleans(),
    )
    def reserve(self, number: int, tokens: int, least: int, price: tuple[int, int], with_key: bool) -> None:
        fixed, per_token = price
        account, request = self.accounts[number], RequestId(uuid4())
        wanted = msgspec.structs.replace(
            self.books.wanted(self.owners[number], request, tokens),
            least_tokens=least,
            fixed_micro=MicroCredits(fixed),
            micro_per_million=per_token * 1_000_000,
            monthly_micro=MicroCredits(MONTHLY),
            key_id=self.keys[number] if with_key else None,
            key_budget_micro=MicroCredits(BUDGET) if with_key else None,
        )
        (answer,) = self.run(self.books.ledger.reserve([wanted], gateway=GATEWAY, lease_seconds=90))
        room = account.included + account.balance - account.reserved
        if with_key:
            room = min(room, BUDGET - account.key_spent - account.key_reserved)
        granted: int | None = tokens
        if fixed + tokens * per_token > room:
            granted = (room - fixed) // per_token if per_token and room >= fixed else None
            if granted is not None and granted < min(least, tokens):
                granted = None
        if granted is None:
            assert isinstance(answer, InsufficientCredits)
            assert answer.room_micro == room
            return
        assert answer == GrantedReservation(granted)
        held = fixed + granted * per_token
        account.reserved += held
        account.key_reserved += held if with_key else 0
        self.reservations[request] = Reservation(number, with_key, held, granted, per_token)

    @precondition(lambda self: self.reservations)
    @rule(which=st.integers(0, 50), tokens=st.integers(0, 1500), least=st.integers(1, 300), again=st.booleans())
    def extend(self, which: int, tokens: int, least: int, again: bool) -> None:
        request = self.some(which)
        held = self.reservations[request]
        account, with_key = self.accounts[held.owner], held.with_key
        extension = HoldExtension(
            request_id=request, owner=self.owners[held.owner], max_tokens=tokens, least_more=least, answers=1,
            micro_per_million=held.per_token * 1_000_000, monthly_micro=MicroCredits(MONTHLY),
            key_budget_micro=MicroCredits(BUDGET) if with_key else None,
        )  # fmt: skip
        for _ in range(2 if again else 1):
            (answer,) = self.run(self.books.ledger.extend_holds([extension]))
            if held.cost is not None:
                assert answer == ExtendedHold(None)
                return
            room = max(0, account.included + account.balance - account.reserved)
            if with_key:
                room = max(0, min(room, BUDGET - account.key_spent - account.key_reserved))
            more = tokens - held.tokens
            if more * held.per_token > room:
                more = room // held.per_token
            if more >= least:
                held.tokens += more
                held.held += more * held.per_token
                account.reserved += more * held.per_token
                account.key_reserved += more * held.per_token if with_key else 0
            assert answer == ExtendedHold(held.tokens)

    @precondition(lambda self: self.reservations)
    @rule(which=st.lists(st.tuples(st.integers(0, 50), amounts), min_size=1, max_size=4), state=st.sampled_from(ReservationState))
    def settle(self, which: list[tuple[int, int]], state: ReservationState) -> None:
        """Settle requests, including settled ones and the same one twice in a batch."""
        chosen = {self.some(number): cost for number, cost in which}
        rows = []
        for request, cost in chosen.items():
            reservation = self.reservations[request]
            rows.append(msgspec.structs.replace(row(self.owners[reservation.owner], request, cost), reservation=state))
            if reservation.cost is None:
                account = self.accounts[reservation.owner]
                reservation.cost = min(cost, reservation.held)
                of_included = min(account.included, reservation.cost)
                account.included -= of_included
                account.balance -= reservation.cost - of_included
                account.reserved -= reservation.held
                if reservation.with_key:
                    account.key_reserved -= reservation.held
                    account.key_spent += reservation.cost
        self.run(self.books.requests.write_requests([*rows, rows[0]]))

    @rule(number=numbers, amount=st.integers(-500, 2000).filter(bool), again=st.booleans())
    def top_up(self, number: int, amount: int, again: bool) -> None:
        transfer = RequestId(uuid4())
        for first in (True, False) if again else (True,):
            done = self.run(self.books.ledger.top_up(transfer, self.owners[number], MicroCredits(amount), "", MicroCredits(MONTHLY)))
            assert done == first
        self.accounts[number].balance += amount

    @precondition(lambda self: self.reservations)
    @rule(which=st.integers(0, 50))
    def revert(self, which: int) -> None:
        request = self.some(which)
        reservation = self.reservations[request]
        if reservation.reverted:
            with pytest.raises(AlreadyReverted):
                self.run(self.books.ledger.revert(request, ""))
            return
        owner = self.run(self.books.ledger.revert(request, ""))
        if not reservation.cost:
            assert owner is None
            return
        assert owner == self.owners[reservation.owner]
        reservation.reverted = True
        self.accounts[reservation.owner].balance += reservation.cost
        self.accounts[reservation.owner].key_spent -= reservation.cost if reservation.with_key else 0

    @rule(number=numbers)
    def a_month_passes(self, number: int) -> None:
        self.run(self.books.execute(f"UPDATE accounts SET month = month - interval '1 month' WHERE owner = '{self.owners[number]}'"))
        self.run(self.books.account(self.owners[number], MONTHLY))
        self.accounts[number].included = MONTHLY

    @invariant()
    def both_say_the_same(self) -> None:
        for number, owner in enumerate(self.owners):
            account = self.accounts[number]
            assert self.run(self.books.account(owner, MONTHLY)) == (account.included, account.balance, account.reserved)

    def teardown(self) -> None:
        report = self.run(self.books.report())
        assert report.findings == ()
        assert report.sum_micro == 0


def test_the_ledger_balances_after_any_sequence_of_operations(postgres: PostgresServer) -> None:
    postgres.ensure_running()
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
