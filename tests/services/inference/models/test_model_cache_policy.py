"""Which models are loaded or evicted, and who waits: cases, and a state machine that explores the rest."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.inference.models import model_cache_policy
from services.inference.models.model_cache_policy import (
    PATIENCE_SECONDS,
    AdmitStep,
    Decision,
    LoadModelStep,
    ModelCachePolicy,
    RecheckStep,
    RefuseStep,
    Stage,
    UnloadModelStep,
)
from services.inference.models.quantities import MemoryBytes
from shared.types import ModelName
from tests import tiers

A, B, C, BIG, ON_GPU, PARTLY = (ModelName(name) for name in ("a", "b", "c", "big", "gpu", "partly"))
BUDGET, GPU_BUDGET = 10, 6
NEEDS = {
    A: MemoryBytes(4),
    B: MemoryBytes(4),
    C: MemoryBytes(4),
    BIG: MemoryBytes(9),
    ModelName("huge"): MemoryBytes(11),
    ON_GPU: MemoryBytes(1, 5),
    PARTLY: MemoryBytes(4, 4),
    ModelName("huge on the GPU"): MemoryBytes(1, 7),
}
KEEP_ALIVE_SECONDS = {B: 60.0}


SWAP_SECONDS = 30.0


def policy(budget: int = BUDGET, swap_seconds: float = 0.0) -> ModelCachePolicy:
    core = ModelCachePolicy(MemoryBytes(budget, GPU_BUDGET), swap_seconds)
    for model, need in NEEDS.items():
        core.add(model, need, KEEP_ALIVE_SECONDS.get(model))
    return core


class Site:
    """A policy whose loads and unloads finish immediately."""

    def __init__(self, *loaded: ModelName, budget: int = BUDGET) -> None:
        self.core = policy(budget)
        self.now = 0.0
        self.decisions: list[Decision] = []
        for caller, name in enumerate(loaded, 1000):
            self.now += 1
            self.wants(name, caller)
            self.finishes(name)
        self.decisions.clear()

    def do(self, what: Callable[[ModelCachePolicy, float], Sequence[Decision]]) -> list[Decision]:
        """Return all decisions that follow, in order; a moment after the previous ones."""
        self.now += 0.001
        fresh = list(what(self.core, self.now))
        decided: list[Decision] = []
        while fresh:
            decision = fresh.pop(0)
            decided.append(decision)
            if isinstance(decision, LoadModelStep):
                fresh += self.core.loaded(decision.model, self.now)
            elif isinstance(decision, UnloadModelStep):
                fresh += self.core.unloaded(decision.model, self.core.models[decision.model].need, self.now)
        self.decisions += decided
        return decided

    def wants(self, model: ModelName, caller: int) -> list[Decision]:
        return self.do(lambda core, now: core.wanted(model, caller, now))

    def finishes(self, model: ModelName) -> list[Decision]:
        return self.do(lambda core, now: core.finished(model, now))

    def after(self, seconds: float) -> list[Decision]:
        self.now += seconds
        return self.do(lambda core, now: core.tick(now))


def test_first_caller_loads_a_model_that_later_callers_share() -> None:
    site = Site()
    assert site.wants(A, 1) == [LoadModelStep(A), AdmitStep(1)]
    assert site.wants(A, 2) == [AdmitStep(2)]


def test_callers_during_a_load_wait_for_it_in_order() -> None:
    core = policy()
    assert core.wanted(A, 1, 0) == [LoadModelStep(A)]
    assert core.wanted(A, 2, 0) == []
    assert core.wanted(A, 3, 0) == []
    assert core.loaded(A, 5) == [AdmitStep(1), AdmitStep(2), AdmitStep(3)]


def test_two_models_that_fit_are_loaded_together() -> None:
    site = Site(A)
    assert site.wants(B, 1) == [LoadModelStep(B), AdmitStep(1)]
    assert site.core.used().ram == 8


def test_least_recently_used_idle_model_is_evicted() -> None:
    site = Site(A, B, A)
    assert site.wants(C, 1) == [UnloadModelStep(B, C), LoadModelStep(C), AdmitStep(1)]


def test_only_as_many_models_are_evicted_as_needed() -> None:
    site = Site(A, B)
    site.wants(A, 1)
    assert site.wants(BIG, 2) == []
    assert site.core.models[B].stage is Stage.LOADED


def test_busy_model_is_waited_for() -> None:
    site = Site(A, B)
    site.wants(A, 1)
    assert site.wants(BIG, 2) == []
    assert site.finishes(A) == [UnloadModelStep(B, BIG), UnloadModelStep(A, BIG), LoadModelStep(BIG), AdmitStep(2)]


def test_busy_model_that_must_go_accepts_callers_only_for_a_while() -> None:
    site = Site(A)
    site.wants(A, 1)
    assert site.wants(BIG, 2) == []
    assert site.wants(A, 3) == [AdmitStep(3)]
    site.finishes(A)
    assert site.after(PATIENCE_SECONDS) == []
    assert site.wants(A, 4) == []
    assert site.finishes(A) == [UnloadModelStep(A, BIG), LoadModelStep(BIG), AdmitStep(2)]
    assert site.finishes(BIG) == [UnloadModelStep(BIG, A), LoadModelStep(A), AdmitStep(4)]


def test_closing_model_stays_the_chosen_one() -> None:
    site = Site(A, B)
    site.wants(B, 1)
    site.wants(B, 2)
    site.wants(A, 3)
    assert site.wants(C, 4) == []
    assert site.after(PATIENCE_SECONDS) == []
    assert site.finishes(B) == []
    assert site.wants(B, 5) == [], "b was the least recently used, so it ends"
    assert site.wants(A, 6) == [AdmitStep(6)]
    assert site.finishes(B) == [UnloadModelStep(B, C), LoadModelStep(C), AdmitStep(4)]
    assert site.finishes(C) == [UnloadModelStep(C, B), LoadModelStep(B), AdmitStep(5)]


def test_model_that_fits_is_loaded_past_a_waiting_caller_for_a_while() -> None:
    site = Site(A)
    site.wants(A, 1)
    assert site.wants(BIG, 2) == []
    assert site.wants(B, 3) == [LoadModelStep(B), AdmitStep(3)]
    site.finishes(B)
    site.after(PATIENCE_SECONDS)
    site.do(lambda core, _now: core.unload(B))
    assert site.wants(C, 4) == [], "the room that is free now is the one's who has waited"
    assert site.finishes(A) == [UnloadModelStep(A, BIG), LoadModelStep(BIG), AdmitStep(2)]


def test_memory_is_freed_only_for_the_first_waiting_caller() -> None:
    site = Site(A, B)
    site.wants(B, 1)
    assert site.wants(BIG, 2) == []
    assert site.wants(C, 3) == [], "a is idle, and it is the first one's"
    assert site.finishes(B) == [UnloadModelStep(A, BIG), UnloadModelStep(B, BIG), LoadModelStep(BIG), AdmitStep(2)]
    assert site.finishes(BIG) == [UnloadModelStep(BIG, C), LoadModelStep(C), AdmitStep(3)]


def test_memory_being_freed_is_reserved() -> None:
    core = policy()
    core.wanted(A, 1, 0)
    core.loaded(A, 0)
    core.finished(A, 0)
    assert core.wanted(BIG, 2, 1) == [UnloadModelStep(A, BIG)]
    assert core.wanted(B, 3, 1) == []
    assert core.unloaded(A, core.models[A].need, 1) == [LoadModelStep(BIG)]


def test_model_may_need_another_amount_when_it_is_loaded_again() -> None:
    core = policy()
    core.wanted(A, 1, 0)
    core.loaded(A, 0)
    core.finished(A, 0)
    core.unload(A)
    core.wanted(A, 2, 1)
    more = core.budget + core.budget
    [refused] = core.unloaded(A, more, 1)
    assert isinstance(refused, RefuseStep), "not loaded with the memory of before"


def test_closed_model_reopens_when_the_waiting_caller_leaves() -> None:
    site = Site(A)
    site.wants(A, 1)
    site.wants(BIG, 2)
    site.after(PATIENCE_SECONDS)
    assert site.wants(A, 3) == []
    assert site.do(lambda core, now: core.withdrawn(2, now)) == [AdmitStep(3)]


def test_model_larger_than_the_machine_is_refused_with_the_numbers() -> None:
    core = ModelCachePolicy(MemoryBytes(3 * 2**30))
    core.add(A, MemoryBytes(5 * 2**30))
    assert core.wanted(A, 1, 0) == [RefuseStep(1, "needs 5.0 GiB, but models may use 3.0 GiB on this machine", None)]
    assert core.unavailable_reason(A, 0)


def test_pinned_model_stays_and_a_conflicting_one_is_refused_by_name() -> None:
    site = Site(A)
    site.core.pin(A, pinned=True)
    (refused,) = site.wants(BIG, 1)
    assert isinstance(refused, RefuseStep)
    assert "a is pinned" in refused.reason
    assert site.wants(B, 2) == [LoadModelStep(B), AdmitStep(2)]
    site.finishes(B)
    assert site.wants(C, 3) == [UnloadModelStep(B, C), LoadModelStep(C), AdmitStep(3)]


@pytest.mark.parametrize(
    ("model", "idle_seconds", "expected"),
    [
        pytest.param(B, 59.9, [], id="before its time it stays"),
        pytest.param(B, 60.0, [UnloadModelStep(B)], id="then it goes"),
        pytest.param(A, 1e9, [], id="one without a time stays"),
    ],
)
def test_keep_alive(model: ModelName, idle_seconds: float, expected: list[Decision]) -> None:
    assert Site(model).after(idle_seconds) == expected


def test_keep_alive_counts_from_the_last_job_and_spares_busy_and_pinned_models() -> None:
    site = Site(B)
    site.wants(B, 1)
    assert site.after(500) == []
    assert site.finishes(B) == []
    assert site.after(59) == []
    site.core.pin(B, pinned=True)
    assert site.after(500) == []
    site.core.pin(B, pinned=False)
    assert site.after(0) == [UnloadModelStep(B)]


def test_failed_load_refuses_all_waiting_callers_and_is_not_retried_immediately() -> None:
    core = policy()
    core.wanted(A, 1, 0)
    core.wanted(A, 2, 0)
    assert core.load_failed(A, "out of memory", 1) == [RefuseStep(1, "out of memory", 5.0), RefuseStep(2, "out of memory", 5.0)]
    assert core.wanted(A, 3, 2) == [RefuseStep(3, "out of memory", 4.0)]
    assert core.wanted(A, 4, 6) == [LoadModelStep(A)]
    core.load_failed(A, "still", 6)
    assert core.wanted(A, 5, 7) == [RefuseStep(5, "still", 9.0)]


def test_load_that_keeps_failing_waits_for_a_manual_retry() -> None:
    core = policy()
    now = 0.0
    for _ in range(model_cache_policy.MAX_FAILURES):
        assert core.wanted(A, 1, now)[0] == LoadModelStep(A)
        core.load_failed(A, "broken", now)
        now += model_cache_policy.LOAD_BACKOFF.longest_seconds
    assert core.wanted(A, 1, now + 1e9) == [RefuseStep(1, "broken", None)]
    core.reset_failures(A)
    assert core.wanted(A, 1, now) == [LoadModelStep(A)]


def test_failed_load_is_retried_in_the_background_and_counts_as_failed_until_then() -> None:
    core = policy()
    core.wanted(A, 1, 0)
    core.load_failed(A, "out of memory", 0)
    assert core.tick(4.9) == []
    assert core.unavailable_reason(A, 4.9) == core.unavailable_reason(A, 5.1) == "out of memory"
    assert core.tick(5.1) == core.tick(5.2) == [RecheckStep(A)]
    assert core.retry(A, 5.2) == [LoadModelStep(A)]
    assert core.tick(5.3) == core.retry(A, 5.3) == []
    core.load_failed(A, "still", 6)
    assert core.tick(6 + 10.1) == [RecheckStep(A)]
    assert core.retry(A, 6 + 10.1) == [LoadModelStep(A)]
    core.loaded(A, 17)
    assert core.unavailable_reason(A, 17) == ""
    assert core.tick(1000) == []


def test_failed_load_is_not_retried_at_the_expense_of_another_model() -> None:
    core = policy()
    core.wanted(BIG, 1, 0)
    core.load_failed(BIG, "out of memory", 0)
    core.wanted(A, 2, 1)
    core.loaded(A, 1)
    core.finished(A, 1)
    assert core.tick(6) == []
    assert core.unavailable_reason(BIG, 6) == "", "only a request makes the other one leave"


def test_engine_that_is_gone_for_good_frees_its_memory() -> None:
    site = Site(A)
    site.wants(A, 1)
    assert site.wants(BIG, 2) == []
    assert site.do(lambda core, now: core.load_failed(A, "it crashed", now)) == [LoadModelStep(BIG), AdmitStep(2)]
    assert site.finishes(A) == [], "its job ended too, and counts for nothing"


def test_preload_uses_only_free_memory() -> None:
    site = Site(A)
    assert site.do(lambda core, now: core.preload(B, now)) == [LoadModelStep(B)]
    assert site.do(lambda core, now: core.preload(C, now)) == []
    assert site.do(lambda core, now: core.preload(B, now)) == []


def test_only_idle_models_can_be_unloaded_manually() -> None:
    site = Site(A)
    site.wants(A, 1)
    assert site.core.unload(A) == []
    site.finishes(A)
    assert site.do(lambda core, _now: core.unload(A)) == [UnloadModelStep(A)]
    assert site.core.unload(A) == []


def test_measured_memory_applies_from_the_next_load() -> None:
    site = Site(A)
    site.core.set_need(A, MemoryBytes(1))
    assert site.core.used().ram == 4
    site.do(lambda core, _now: core.unload(A))
    site.core.set_need(A, MemoryBytes(1))
    site.wants(A, 1)
    assert site.core.used().ram == 1


def test_gpu_memory_counts_apart_from_the_machines() -> None:
    site = Site(A, ON_GPU)
    # The GPU is full, so only the model on it is evicted, although the other model was used less recently.
    assert site.wants(PARTLY, 1) == [UnloadModelStep(ON_GPU, PARTLY), LoadModelStep(PARTLY), AdmitStep(1)]
    site.finishes(PARTLY)
    # Now RAM is short: the least recently used model is evicted, because freeing GPU memory would not help.
    assert site.wants(B, 2) == [UnloadModelStep(A, B), LoadModelStep(B), AdmitStep(2)]
    (refused,) = site.wants(ModelName("huge on the GPU"), 3)
    assert refused == RefuseStep(
        3, "needs 0.0 MiB of GPU memory and 0.0 MiB, but models may use 0.0 MiB of GPU memory and 0.0 MiB on this machine", None
    )


class Machine(RuleBasedStateMachine):
    """Callers, jobs, slow and failing loads, pins and the passing of time, in any order; every decision is carried out."""

    models = st.sampled_from(sorted(NEEDS))

    def __init__(self) -> None:
        super().__init__()
        self.core = policy()
        self.now = 0.0
        self.next_caller = 0
        self.waiting: dict[int, ModelName] = {}
        self.jobs: list[ModelName] = []
        self.loading: list[ModelName] = []
        self.leaving: list[ModelName] = []
        self.rechecked: set[ModelName] = set()

    def act(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            match decision:
                case LoadModelStep(model):
                    assert model not in self.loading, "two loads of one model"
                    assert model not in self.leaving
                    self.loading.append(model)
                case UnloadModelStep(model):
                    assert model not in self.jobs, "a busy model was unloaded"
                    assert not self.core.models[model].pinned or self.unpinned_order
                    self.leaving.append(model)
                case AdmitStep(caller):
                    self.jobs.append(self.waiting.pop(caller))
                case RefuseStep(caller):
                    self.waiting.pop(caller)
                case RecheckStep(model):
                    self.rechecked.add(model)

    unpinned_order = False

    @initialize(swap_seconds=st.sampled_from([0.0, SWAP_SECONDS]))
    def begin(self, swap_seconds: float) -> None:
        self.core = policy(swap_seconds=swap_seconds)

    @rule(model=models)
    def want(self, model: ModelName) -> None:
        self.next_caller += 1
        self.waiting[self.next_caller] = model
        self.act(self.core.wanted(model, self.next_caller, self.now))

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 100))
    def withdraw(self, index: int) -> None:
        caller = sorted(self.waiting)[index % len(self.waiting)]
        del self.waiting[caller]
        self.act(self.core.withdrawn(caller, self.now))

    @precondition(lambda self: self.jobs)
    @rule(index=st.integers(0, 100))
    def finish(self, index: int) -> None:
        self.act(self.core.finished(self.jobs.pop(index % len(self.jobs)), self.now))

    @precondition(lambda self: self.loading)
    @rule(index=st.integers(0, 100), works=st.booleans())
    def end_load(self, index: int, works: bool) -> None:
        model = self.loading.pop(index % len(self.loading))
        self.act(self.core.loaded(model, self.now) if works else self.core.load_failed(model, "broken", self.now))

    @precondition(lambda self: self.leaving)
    @rule(index=st.integers(0, 100))
    def end_unload(self, index: int) -> None:
        model = self.leaving.pop(index % len(self.leaving))
        self.act(self.core.unloaded(model, self.core.models[model].need, self.now))

    @rule(seconds=st.floats(0, 400))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.core.tick(self.now))

    @precondition(lambda self: self.rechecked)
    @rule()
    def retry(self) -> None:
        self.act(self.core.retry(self.rechecked.pop(), self.now))

    @rule(model=models, pinned=st.booleans())
    def pin(self, model: ModelName, pinned: bool) -> None:
        self.core.pin(model, pinned=pinned)

    @rule(model=models)
    def order(self, model: ModelName) -> None:
        self.unpinned_order = True
        self.act(self.core.unload(model))
        self.unpinned_order = False

    @rule(model=models)
    def preload(self, model: ModelName) -> None:
        self.act(self.core.preload(model, self.now))

    @invariant()
    def the_budget_holds(self) -> None:
        assert self.core.used().fits(MemoryBytes(BUDGET, GPU_BUDGET))

    @invariant()
    def its_jobs_are_the_jobs(self) -> None:
        for model in NEEDS:
            assert self.core.models[model].jobs == self.jobs.count(model)

    def teardown(self) -> None:
        """Once jobs and loads have ended and time has passed, every waiting caller has been admitted or refused."""
        for _ in range(4 * len(NEEDS) + len(self.waiting)):
            while self.jobs:
                self.finish(0)
            while self.loading:
                self.end_load(0, works=True)
            while self.leaving:
                self.end_unload(0)
            self.pass_time(max(PATIENCE_SECONDS, SWAP_SECONDS))
        assert not self.waiting


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=tiers.volume(150), stateful_step_count=40, deadline=None)
