"""Which machine gets which model: as many copies as wanted, where they may be, and never moved without a reason."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from services.gateway.models import placement_plan
from services.gateway.models.placement_plan import NO_CONSENT, REMOVED, Action, Assignment, Held, Machine, Step, Wanted
from shared.types import ModelName, NodeId
from tests import tiers

A, B = ModelName("a"), ModelName("b")
NODES = [NodeId(f"N{number:02}") for number in range(12)]


def machine(number: int, held: dict[ModelName, Held] | None = None, *, accepts: bool = True, models: int = 0, **labels: str) -> Machine:
    found = held or {}
    return Machine(NODES[number], labels, accepts, found, tuple(found), models)


def wanted(name: ModelName = A, copies: int | None = 1, *, nodes: tuple[str, ...] = (), loads: bool = False, **labels: str) -> Wanted:
    return Wanted(name, copies, labels, nodes, loads)


def assign(one: Wanted, *machines: Machine, **refusals: str) -> Assignment:
    return placement_plan.assign(one, machines, {(NodeId(node), one.name): why for node, why in refusals.items()})


def test_the_machines_with_the_fewest_models_are_taken() -> None:
    found = assign(wanted(copies=2), machine(0, models=3), machine(1, models=1), machine(2, models=2))
    assert (found.nodes, found.short) == ((NODES[1], NODES[2]), 0)


def test_a_copy_that_is_there_stays() -> None:
    found = assign(wanted(), machine(0), machine(1, {A: Held.STORED}, models=9))
    assert found.nodes == (NODES[1],)


def test_labels_and_ids_choose_machines() -> None:
    machines = machine(0, gpu="yes"), machine(1), machine(2, gpu="yes", room="b")
    assert assign(wanted(copies=None, gpu="yes"), *machines).nodes == (NODES[0], NODES[2])
    assert assign(wanted(copies=None, nodes=("N01",)), *machines).nodes == (NODES[1],)
    found = assign(wanted(gpu="no"), *machines)
    assert (found.nodes, found.short, found.reasons) == ((), 1, {})


def test_machines_that_refuse_are_passed_over_with_their_reasons() -> None:
    found = assign(wanted(copies=3), machine(0), machine(1, accepts=False), machine(2), N02="the disk is full")
    assert (found.nodes, found.short) == ((NODES[0],), 2)
    assert found.reasons == {NODES[1]: NO_CONSENT, NODES[2]: "the disk is full"}


def test_what_an_owner_withdraws_consent_for_stays_where_it_is() -> None:
    assert assign(wanted(), machine(0, {A: Held.LOADED}, accepts=False), machine(1)).nodes == (NODES[0],)


def test_what_an_owner_removed_is_not_put_there_again_in_any_version() -> None:
    version = ModelName("a@3")
    gone = Machine(NODES[0], {}, accepts=True, held={}, assigned=(), models=0, refused=(A,))
    for name, other in ((A, ModelName("b")), (version, ModelName("b@3"))):
        found = assign(wanted(name), gone)
        assert (found.nodes, found.short, found.reasons) == ((), 1, {NODES[0]: REMOVED})
        assert assign(wanted(name), gone, machine(1)).nodes == (NODES[1],)
        assert assign(wanted(other), gone).nodes == (NODES[0],)


def test_what_is_wanted_is_fetched_loaded_and_removed() -> None:
    machines = machine(0, {A: Held.STORED, B: Held.STORED}), machine(1), machine(2, {A: Held.COMING})
    everywhere = assign(wanted(copies=None, loads=True), *machines)
    assert placement_plan.plan([everywhere], machines) == (
        Action(Step.LOAD, NODES[0], A),
        Action(Step.FETCH, NODES[1], A),
        Action(Step.REMOVE, NODES[0], B),
    )


def test_what_its_owner_put_there_is_not_removed() -> None:
    machines = (Machine(NODES[0], {}, accepts=True, held={A: Held.LOADED}, assigned=(), models=1),)
    assert placement_plan.plan([], machines) == ()


class Fleet(RuleBasedStateMachine):
    """Machines come and go, people change what they want and allow, and a gateway plans again each time."""

    def __init__(self) -> None:
        super().__init__()
        self.machines: dict[NodeId, Machine] = {}
        self.wanted: dict[ModelName, Wanted] = {}
        self.refusals: dict[tuple[NodeId, ModelName], str] = {}
        #: Where models were to be at the last look.
        self.chosen: dict[ModelName, tuple[NodeId, ...]] = {}

    def some(self, number: int) -> Machine:
        return list(self.machines.values())[number % len(self.machines)]

    def change(self, before: Machine, **changed: Any) -> None:
        self.machines[before.node] = replace(before, **changed)

    def look(self) -> tuple[Action, ...]:
        """Plan, and hold the plan against the rules."""
        fleet = list(self.machines.values())
        found = [placement_plan.assign(one, fleet, self.refusals) for one in self.wanted.values()]
        for each in found:
            one, holders = each.wanted, {machine.node for machine in fleet if machine.held.get(each.wanted.name)}
            matching = {machine.node for machine in fleet if one.labels.items() <= machine.labels.items()}
            may = {machine.node for machine in fleet if machine.accepts and one.name not in machine.refused}
            may -= {node for node, name in self.refusals if name == one.name}
            most = len(matching) if one.copies is None else one.copies
            assert set(each.nodes) <= matching & (may | holders)
            assert len(each.nodes) == min(most, len(matching & (may | holders)))
            assert each.short == most - len(each.nodes)
            assert set(each.reasons) == (matching - set(each.nodes) if each.short else set())
            stays = set(self.chosen.get(one.name, ())) & holders & matching
            assert stays <= set(each.nodes) or set(each.nodes) <= holders, "nothing moves to where it wasn't"
        self.chosen = {each.wanted.name: each.nodes for each in found}
        actions = placement_plan.plan(found, fleet)
        for action in actions:
            machine = self.machines[action.node]
            assert (action.step is Step.REMOVE) == (action.node not in self.chosen.get(action.name, ()))
            assert action.step is not Step.REMOVE or action.name in machine.assigned, "what its owner put there stays"
        return actions

    def carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            before = self.machines[action.node]
            held = {name: each for name, each in before.held.items() if name != action.name}
            if action.step is not Step.REMOVE:
                held[action.name] = Held.LOADED if action.step is Step.LOAD else Held.STORED
            assigned = {*before.assigned, action.name} if action.step is Step.FETCH else before.assigned
            self.change(before, held=held, assigned={*assigned} & held.keys())

    @precondition(lambda self: len(self.machines) < len(NODES))
    @rule(accepts=st.booleans(), models=st.integers(0, 5), gpu=st.booleans())
    def join(self, models: int, *, accepts: bool, gpu: bool) -> None:
        node = next(each for each in NODES if each not in self.machines)
        self.machines[node] = Machine(node, {"gpu": "yes"} if gpu else {}, accepts, {}, (), models)

    @precondition(lambda self: self.machines)
    @rule(number=st.integers(0, 11))
    def leave(self, number: int) -> None:
        del self.machines[self.some(number).node]

    @rule(name=st.sampled_from((A, B)), copies=st.none() | st.integers(1, 5), gpu=st.booleans(), loads=st.booleans())
    def want(self, name: ModelName, copies: int | None, *, gpu: bool, loads: bool) -> None:
        self.wanted[name] = Wanted(name, copies, {"gpu": "yes"} if gpu else {}, (), loads)

    @rule(name=st.sampled_from((A, B)))
    def give_up(self, name: ModelName) -> None:
        self.wanted.pop(name, None)

    @precondition(lambda self: self.machines)
    @rule(number=st.integers(0, 11))
    def change_consent(self, number: int) -> None:
        self.change(self.some(number), accepts=not self.some(number).accepts)

    @precondition(lambda self: self.machines)
    @rule(number=st.integers(0, 11), name=st.sampled_from((A, B)), adds=st.booleans())
    def act_as_owner(self, number: int, name: ModelName, *, adds: bool) -> None:
        before = self.some(number)
        held = {one: each for one, each in before.held.items() if one != name} | ({name: Held.LOADED} if adds else {})
        refused = {*before.refused} - {name} if adds else {*before.refused, name}
        self.change(before, held=held, assigned={*before.assigned} - {name}, refused=refused)

    @precondition(lambda self: self.machines)
    @rule(number=st.integers(0, 11), name=st.sampled_from((A, B)))
    def refuse(self, number: int, name: ModelName) -> None:
        self.refusals[self.some(number).node, name] = "full"

    @rule()
    def forget_refusals(self) -> None:
        self.refusals.clear()

    @rule(number=st.integers(1, 3))
    def work(self, number: int) -> None:
        self.carry_out(self.look()[:number])

    @invariant()
    def a_plan_that_is_carried_out_has_nothing_left(self) -> None:
        before, chosen = dict(self.machines), self.chosen
        for _ in (Step.FETCH, Step.LOAD):
            self.carry_out(self.look())
        assert self.look() == ()
        for name, nodes in self.chosen.items():
            least = Held.LOADED if self.wanted[name].loads else Held.STORED
            assert all(self.machines[node].held[name] >= least for node in nodes)
        self.machines, self.chosen = before, chosen


def test_no_plan_breaks_a_rule_whatever_happens() -> None:
    checks = settings(max_examples=300 if tiers.is_nightly() else 50, stateful_step_count=30, deadline=None, print_blob=True)
    run_state_machine_as_test(Fleet, settings=checks)  # type: ignore[no-untyped-call]
