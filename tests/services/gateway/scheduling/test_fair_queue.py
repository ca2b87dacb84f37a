"""The order of tenants, tested without a clock or an event loop."""

from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import QueuedKind
from services.gateway.scheduling import fair_queue
from services.gateway.scheduling.fair_queue import FairQueue
from shared.types import UserId

A, B, C = (UserId(UUID(int=number)) for number in range(3))
KIND = QueuedKind(A, ANYWHERE)


def filled(*tickets: tuple[UserId, str], cost: float = 10) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for tenant, ticket in tickets:
        queue.enter(tenant, ticket, cost, kind=KIND)
    return queue


def take(queue: FairQueue[str]) -> str:
    ticket = next(queue.turns())
    queue.dequeue(ticket, queue._queued[ticket].cost)
    return ticket


def test_one_request_of_another_tenant_is_next_although_500_wait() -> None:
    queue = filled(*((A, f"a{number}") for number in range(500)))
    assert take(queue) == "a0"
    queue.enter(B, "b0", 10, kind=KIND)
    assert [take(queue), take(queue), take(queue)] == ["b0", "a1", "a2"]


def test_an_idle_tenant_earns_no_credit() -> None:
    queue = filled(*((A, f"a{number}") for number in range(20)))
    for _ in range(10):
        take(queue)
    for number in range(10):
        queue.enter(B, f"b{number}", 10, kind=KIND)
    taken = [take(queue) for _ in range(10)]
    assert sum(ticket[0] == "b" for ticket in taken) == 5


def test_a_tenant_served_alone_is_not_punished_when_another_arrives() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.enter(A, f"early{number}", 1000, kind=KIND)
        take(queue)
    for number in range(4):
        queue.enter(B, f"b{number}", 10, kind=KIND)
        queue.enter(A, f"a{number}", 10, kind=KIND)
    assert sorted(take(queue)[0] for _ in range(4)) == ["a", "a", "b", "b"]


def test_the_actual_cost_decides_the_next_turn() -> None:
    queue = filled((A, "a0"), (B, "b0"), (A, "a1"), (B, "b1"))
    assert [take(queue), take(queue)] == ["a0", "b0"]
    queue.correct(A, 100)
    assert [take(queue), take(queue)] == ["b1", "a1"]


def test_resumed_answers_come_first() -> None:
    queue = filled((A, "a0"), (B, "b0"))
    queue.enter(A, "goes on", 10, urgent=True, kind=KIND)
    assert queue.order()[0] == "goes on"
    assert take(queue) == "goes on"


def test_leaving_frees_the_place() -> None:
    queue = filled((A, "a0"), (A, "a1"), (B, "b0"))
    queue.leave("a0")
    queue.leave("a0")
    assert queue.order() == ["a1", "b0"]
    assert (len(queue), queue.waiting_of(A), queue.counter_of(A)) == (2, 1, 0)


def test_the_predicted_order_is_the_actual_order() -> None:
    queue = filled(*((A, f"a{number}") for number in range(5)), (B, "b0"), (B, "b1"), (C, "c0"))
    expected = queue.order()
    assert [take(queue) for _ in expected] == expected


def test_a_newcomers_position_counts_turns_not_requests() -> None:
    queue = filled(*((A, f"a{number}") for number in range(50)))
    queue.enter(B, "b0", 10, kind=KIND)
    assert queue.position_of_last(B) == 2
    assert queue.position_of_last(A) == 51


def test_counters_are_bounded() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.enter(C, -1, 1, kind=KIND)
    for number in range(fair_queue.MAX_TENANTS + 10):
        queue.enter(UserId(UUID(int=number + 100)), number, 1, kind=KIND)
        queue.dequeue(number, 1)
    assert len(queue._counters) <= fair_queue.MAX_TENANTS
    assert len(queue._had_turn) <= fair_queue.MAX_TENANTS
    assert queue.order() == [-1]


def test_a_waiting_tenants_counter_is_never_dropped() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.enter(C, -1, 1, kind=KIND)
    queue.dequeue(-1, 1_000_000)
    queue.enter(C, -2, 1, kind=KIND)
    for number in range(fair_queue.MAX_TENANTS + 10):
        queue.correct(UserId(UUID(int=number + 100)), 1)
    assert queue.counter_of(C) == 1_000_000
    queue.enter(A, 1, 1, kind=KIND)
    queue.correct(A, -queue.counter_of(A))
    assert next(queue.turns()) == 1, "the tokens that C received count"


def test_nothing_is_left_of_finished_requests() -> None:
    queue = filled((A, "a0"), (A, "a1"), (B, "b0"))
    queue.enter(C, "c0", 10, urgent=True, kind=KIND)
    queue.leave("a1")
    queue.leave("c0")
    while queue:
        take(queue)
    assert (len(queue), queue.local, queue.counters(), queue.order()) == (0, {}, {}, [])


class Turns(RuleBasedStateMachine):
    """Five tenants with any costs. MAX is the most expensive request."""

    MAX = 50

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.waiting: dict[int, tuple[UserId, int]] = {}
        self.number = 0
        #: For each pair of tenants that both wait: what each was served since both began to wait.
        self.served_together: dict[tuple[UserId, UserId], list[int]] = {}
        #: How often each tenant's first request was passed over.
        self.passed: dict[int, int] = {}

    def backlogged(self) -> set[UserId]:
        return {tenant for tenant, _ in self.waiting.values()}

    def _watch(self) -> None:
        there = self.backlogged()
        self.served_together = {
            (one, other): self.served_together.get((one, other), [0, 0]) for one in there for other in there if one.int < other.int
        }

    @rule(tenant=st.integers(0, 4), cost=st.integers(1, MAX))
    def enter(self, tenant: int, cost: int) -> None:
        self.number += 1
        user = UserId(UUID(int=tenant))
        self.queue.enter(user, self.number, cost, kind=KIND)
        self.waiting[self.number] = (user, cost)
        self._watch()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        self.queue.leave(ticket)
        del self.waiting[ticket]
        self.passed.pop(ticket, None)
        self._watch()

    @precondition(lambda self: self.waiting)
    @rule()
    def take(self) -> None:
        ticket = next(self.queue.turns())
        tenant, cost = self.waiting.pop(ticket)
        self.queue.dequeue(ticket, cost)
        for pair, served in self.served_together.items():
            if tenant in pair:
                served[pair.index(tenant)] += cost
        self.passed.pop(ticket, None)
        first = {}
        for waiting, (user, _) in sorted(self.waiting.items()):
            first.setdefault(user, waiting)
        self.passed = {each: self.passed.get(each, 0) + 1 for each in first.values()}
        self._watch()

    @invariant()
    def who_waits_is_found(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert sorted(self.queue.order()) == sorted(self.waiting)
        # Work conserving: one request of every waiting tenant can be found.
        assert {self.waiting[ticket][0] for ticket in self.queue.turns()} == self.backlogged()

    @invariant()
    def two_that_both_wait_are_served_alike(self) -> None:
        for one, other in self.served_together.values():
            # The paper's bound: twice the most expensive request.
            assert abs(one - other) <= 2 * self.MAX

    @invariant()
    def nobody_starves(self) -> None:
        # Each of the four other tenants may get 2·MAX of the cheapest requests before it.
        assert all(passed <= 4 * 2 * self.MAX for passed in self.passed.values())


Turns.TestCase.settings = settings(stateful_step_count=60, deadline=None)
test_turns = Turns.TestCase
