"""Models that share memory take turns: a simulation of callers, loads and answers on a virtual clock."""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.inference.models.model_cache_policy import (
    MAX_SWAPS,
    PATIENCE_SECONDS,
    SWAPS_SECONDS,
    AdmitStep,
    Decision,
    LoadModelStep,
    ModelCachePolicy,
    RecheckStep,
    RefuseStep,
    UnloadModelStep,
)
from services.inference.models.quantities import MemoryBytes
from shared.types import ModelName
from tests import tiers

A, B, C, PINNED, BROKEN = (ModelName(name) for name in ("a", "b", "c", "pinned", "broken"))
SHARED = (A, B, C)
SWAP_SECONDS = 30.0
TICK_SECONDS = 1.0
UNLOAD_SECONDS = 0.5
#: Enough for every request of these tests.
END = 5000.0


@dataclass(slots=True)
class Request:
    model: ModelName
    at: float
    answer_seconds: float
    #: What the caller does after its answer.
    then: Callable[[], None] = lambda: None
    outcomes: list[str] = field(default_factory=list)
    waited: float = 0.0


class Simulation:
    """One worker with memory for one of the models besides the pinned one."""

    def __init__(self, swap_seconds: float, *, load_seconds: float = 5.0, pins: bool = False) -> None:
        self.core = ModelCachePolicy(MemoryBytes(2 if pins else 1), swap_seconds)
        for model in (*SHARED, PINNED, BROKEN):
            self.core.add(model, MemoryBytes(1), pinned=model == PINNED)
        self.load_seconds = load_seconds
        self.now = 0.0
        self.requests: list[Request] = []
        self.trace: list[tuple[float, Decision]] = []
        self._events: list[tuple[float, int, Callable[[], Sequence[Decision]]]] = []
        self._numbers = itertools.count()
        if pins:
            self.later(0.0, lambda: self.core.preload(PINNED, self.now))

    @property
    def loads(self) -> list[ModelName]:
        return [decision.model for _, decision in self.trace if isinstance(decision, LoadModelStep)]

    @property
    def longest_wait(self) -> float:
        return max(request.waited for request in self.requests)

    def later(self, seconds: float, act: Callable[[], Sequence[Decision]]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def ask(
        self,
        model: ModelName,
        answer_seconds: float,
        after: float = 0.0,
        then: Callable[[], None] = lambda: None,
        leaves_after: float | None = None,
    ) -> None:
        request, caller = Request(model, self.now + after, answer_seconds, then), len(self.requests)
        self.requests.append(request)

        def leave() -> Sequence[Decision]:
            if request.outcomes:
                return ()
            request.outcomes.append("left")
            return self.core.withdrawn(caller, self.now)

        self.later(after, lambda: self.core.wanted(model, caller, self.now))
        if leaves_after is not None:
            self.later(after + leaves_after, leave)

    def run(self) -> "Simulation":
        while self._events or not all(request.outcomes for request in self.requests):
            tick_at = (self.now // TICK_SECONDS + 1) * TICK_SECONDS
            assert tick_at < END, "a request waits forever"
            if self._events and self._events[0][0] <= tick_at:
                self.now, _, act = heapq.heappop(self._events)
                self._carry_out(act())
            else:
                self.now = tick_at
                self._carry_out(self.core.tick(self.now))
        return self

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            self.trace.append((self.now, decision))
            match decision:
                case LoadModelStep(model):
                    self.later(self.load_seconds, partial(self._end_load, model))
                case UnloadModelStep(model):
                    self.later(UNLOAD_SECONDS, partial(self._end_unload, model))
                case AdmitStep(caller):
                    request = self.requests[caller]
                    request.outcomes.append("answered")
                    request.waited = self.now - request.at
                    self.later(request.answer_seconds, partial(self._finish, request))
                case RefuseStep(caller):
                    self.requests[caller].outcomes.append("refused")
                case RecheckStep(model):
                    self._carry_out(self.core.retry(model, self.now))
            assert self.core.used().fits(self.core.budget)

    def _end_load(self, model: ModelName) -> Sequence[Decision]:
        return self.core.load_failed(model, "broken", self.now) if model == BROKEN else self.core.loaded(model, self.now)

    def _end_unload(self, model: ModelName) -> Sequence[Decision]:
        return self.core.unloaded(model, MemoryBytes(1), self.now)

    def _finish(self, request: Request) -> Sequence[Decision]:
        decisions = self.core.finished(request.model, self.now)
        request.then()
        return decisions


def run_streams(swap_seconds: float, *, pause_seconds: float, requests: int = 20, answer_seconds: float = 0.5) -> Simulation:
    """Three callers, one per model, who send their next request ``pause_seconds`` after each answer."""
    simulation = Simulation(swap_seconds)

    def send(model: ModelName, left: int, after: float) -> None:
        if left:
            simulation.ask(model, answer_seconds, after, lambda: send(model, left - 1, pause_seconds))

    for model in SHARED:
        send(model, requests, 0.01)
    return simulation.run()


@pytest.mark.parametrize(("swap_seconds", "pause_seconds", "loads"), [(0.0, 0.01, 60), (30.0, 0.01, 6), (0.0, 0.2, 60), (30.0, 0.2, 6)])
def test_arrivals_for_three_models_take_turns(swap_seconds: float, pause_seconds: float, loads: int) -> None:
    simulation = run_streams(swap_seconds, pause_seconds=pause_seconds)
    assert len(simulation.requests) == 60
    assert len(simulation.loads) == loads


@pytest.mark.parametrize("swap_seconds", [0.0, SWAP_SECONDS])
def test_requests_that_wait_together_share_a_load(swap_seconds: float) -> None:
    simulation = Simulation(swap_seconds)
    for number in range(60):
        simulation.ask(SHARED[number % 3], 0.5, number * 0.001)
    assert simulation.run().loads == [A, B, C]


def test_long_streams_divide_the_time_equally() -> None:
    simulation = run_streams(SWAP_SECONDS, pause_seconds=0.1, requests=100, answer_seconds=1.0)
    starts = [at for at, decision in simulation.trace if isinstance(decision, LoadModelStep)]
    turns = [after - before for before, after in itertools.pairwise(starts[3:9])]
    assert simulation.loads[3:9] == [A, B, C, A, B, C]
    assert max(turns) - min(turns) < 2 * TICK_SECONDS
    assert simulation.longest_wait <= SWAP_SECONDS + 3 * (simulation.load_seconds + UNLOAD_SECONDS + 1)


def test_single_request_for_another_model_is_served_at_once() -> None:
    simulation = Simulation(SWAP_SECONDS)
    simulation.ask(A, 1.0)
    simulation.ask(A, 1.0, 20.0)
    simulation.ask(B, 1.0, 21.5)
    assert simulation.run().requests[-1].waited == UNLOAD_SECONDS + simulation.load_seconds


def test_idle_model_waits_for_its_next_caller_no_longer_than_its_load_took() -> None:
    simulation = Simulation(SWAP_SECONDS)
    for number in range(4):
        simulation.ask(A, 1.0, 7.0 * (number > 0) + 2 * number)
    simulation.ask(B, 1.0, 16.0)
    simulation.run()
    assert simulation.requests[-1].waited == pytest.approx(3 + UNLOAD_SECONDS + simulation.load_seconds, abs=TICK_SECONDS)


def test_model_keeps_its_turn_when_the_waiting_caller_leaves() -> None:
    simulation = Simulation(SWAP_SECONDS)
    simulation.ask(A, 60.0)
    simulation.ask(B, 1.0, 10.0, leaves_after=SWAP_SECONDS + 2)
    simulation.ask(A, 1.0, 10.0 + SWAP_SECONDS + 1)
    simulation.run()
    assert [request.outcomes for request in simulation.requests] == [["answered"], ["left"], ["answered"]]
    assert simulation.requests[-1].waited == 1.0, "it was closed until the other one left"
    assert simulation.loads == [A]


def test_model_that_makes_room_too_often_is_thrashing() -> None:
    simulation = run_streams(0.0, pause_seconds=0.01, requests=MAX_SWAPS)
    assert simulation.core.thrashing(simulation.now) == []
    simulation = run_streams(0.0, pause_seconds=0.01, requests=MAX_SWAPS + 2)
    assert simulation.core.thrashing(simulation.now) == [A, B, C]
    assert simulation.core.thrashing(simulation.now + SWAPS_SECONDS) == []


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests for one model, each ``gap`` after the one before."""

    model: ModelName
    at: float
    gap: float
    requests: int
    answer_seconds: float
    #: When each caller gives up.
    leaves_after: float | None


arrivals = st.lists(
    st.builds(
        Stream,
        st.sampled_from((*SHARED, PINNED, BROKEN)),
        at=st.floats(0, 100),
        gap=st.floats(0, 3),
        requests=st.integers(1, 60),
        answer_seconds=st.floats(0.1, 5),
        leaves_after=st.one_of(st.none(), st.none(), st.floats(0, 60)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=tiers.volume(200), deadline=None)
@given(streams=arrivals, swap_seconds=st.sampled_from([0.0, 5.0, 30.0]), load_seconds=st.floats(0.1, 10))
# The first model has requests at all times.
@example([Stream(A, 0, 1, 60, 2, None), Stream(B, 1, 1, 1, 1, None)], 5.0, 1.0)
def test_every_request_is_served_once_and_in_time(streams: list[Stream], swap_seconds: float, load_seconds: float) -> None:
    def simulate() -> Simulation:
        simulation = Simulation(swap_seconds, load_seconds=load_seconds, pins=True)
        for stream in streams:
            for number in range(stream.requests):
                simulation.ask(stream.model, stream.answer_seconds, stream.at + number * stream.gap, leaves_after=stream.leaves_after)
        return simulation.run()

    simulation = simulate()
    # The models before it and its own are each loaded once, and answer the requests of that moment before they leave.
    turn = load_seconds + max(stream.answer_seconds for stream in streams) + TICK_SECONDS + UNLOAD_SECONDS
    assert simulation.longest_wait <= (swap_seconds or PATIENCE_SECONDS) + len((*SHARED, BROKEN)) * turn
    for request in simulation.requests:
        assert len(request.outcomes) == 1
        assert request.outcomes != ["refused"] or request.model == BROKEN
        assert request.outcomes != ["answered"] or request.model != BROKEN
    assert PINNED not in [decision.model for _, decision in simulation.trace if isinstance(decision, UnloadModelStep)]
    assert simulate().trace == simulation.trace
