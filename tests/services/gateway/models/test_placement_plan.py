"""Which machine gets which model: as many copies as wanted, where they may be, and never moved without a reason."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.models import placement_plan
from services.gateway.models.placement_plan import NO_CONSENT, REMOVED, Action, Assignment, Held, Machine, Step, Wanted
from shared.types import ModelName, NodeId

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


machines_strategy = st.lists(
    st.builds(
        lambda held, accepts, models, gpu: (held, accepts, models, {"gpu": "yes"} if gpu else {}),
        st.dictionaries(st.sampled_from([A, B]), st.sampled_from([Held.COMING, Held.STORED, Held.LOADED])),
        st.booleans(),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=12,
)


@given(machines_strategy, st.none() | st.integers(1, 14), st.sets(st.sampled_from(NODES)), st.booleans())
def test_no_plan_breaks_a_rule_and_a_carried_out_plan_has_nothing_left(
    described: list[tuple[dict[ModelName, Held], bool, int, dict[str, str]]], copies: int | None, refusing: set[NodeId], gpu: bool
) -> None:
    fleet = [
        machine(number, held, accepts=accepts, models=models, **labels) for number, (held, accepts, models, labels) in enumerate(described)
    ]
    one = Wanted(A, copies, {"gpu": "yes"} if gpu else {}, (), loads=True)
    refusals = {(node, A): "full" for node in refusing}
    found = placement_plan.assign(one, fleet, refusals)
    by_node = {each.node: each for each in fleet}
    assert len(set(found.nodes)) == len(found.nodes) == (len(found.nodes) if copies is None else min(len(found.nodes), copies))
    for node in found.nodes:
        has = by_node[node].held.get(A)
        assert has or (by_node[node].accepts and node not in refusing)
        assert not gpu or by_node[node].labels
    if copies is not None:
        assert len(found.nodes) + found.short == copies
    if found.short:
        left = [each for each in fleet if each.node not in found.nodes and (not gpu or each.labels)]
        assert set(found.reasons) == {each.node for each in left}
    # Nothing moves: with everything done, the same machines are chosen, and nothing is left to do.
    for action in placement_plan.plan([found], fleet):
        before = by_node[action.node]
        held = {name: each for name, each in before.held.items() if name != action.name}
        if action.step is not Step.REMOVE:
            held[action.name] = Held.LOADED
        by_node[action.node] = Machine(before.node, before.labels, before.accepts, held, tuple(held), before.models)
    after = [by_node[each.node] for each in fleet]
    again = placement_plan.assign(one, after, refusals)
    assert set(again.nodes) == set(found.nodes)
    assert all(action.step is not Step.FETCH and action.step is not Step.REMOVE for action in placement_plan.plan([again], after))
