"""Which worker a request is sent to."""

import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from services.gateway.facts.placements import ANYWHERE, Placement
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling import worker_choice, worker_records
from services.gateway.scheduling.worker_choice import Candidate
from services.gateway.scheduling.worker_records import WorkerStats
from shared import errors
from shared.config_documents import Machines
from shared.protocol.directory import DEFAULT_QUEUE, ModelOffer, ResumeOrigin, WorkerLoad
from shared.types import ModelName, NodeId, Role, UserId
from tests.services.gateway.fakes import USER, FakeDirectory, node_id

M = ModelName("m")
WISH = WorkerRequirements(M, USER, USER, 10, 10, placement=ANYWHERE)
OTHER = UserId(UUID(int=99))


class WorkerPool:
    """Workers, and what a gateway has recorded about them."""

    def __init__(self) -> None:
        self.directory, self.known = FakeDirectory(), WorkerStats()
        self.directory.watch(lambda entry: self.known.apply_change(entry, 1000.0, datetime.now(UTC)))

    def worker(
        self,
        number: int,
        *,
        running: int = 0,
        slots: int = 4,
        loaded: bool = True,
        digest: str = "",
        expected_wait: float = 0,
        rests: bool = False,
        queue: int = DEFAULT_QUEUE,
        **more: Any,
    ) -> NodeId:
        self.directory.worker(number, "m", load=WorkerLoad(slots, running, 0, expected_wait, queue), **more)
        before = self.directory.find(node_id(number))
        assert before is not None
        offer = ModelOffer(M, 2048, digest, loaded=loaded, slots=slots, busy=running, rests=rests)
        self.directory.apply_announcement(structs.replace(before.announcement, models=(offer,)), "nats")
        return node_id(number)

    def table(self, requirements: WorkerRequirements = WISH, clock: float = 1000.0) -> list[Candidate]:
        return worker_choice.list_candidates(self.known, requirements, self.directory.usable(Role.WORKER), clock)

    def nodes(self, requirements: WorkerRequirements = WISH) -> list[NodeId]:
        return [row.node for row in worker_choice.eligible(requirements, self.table(requirements))]

    def chosen(self, requirements: WorkerRequirements = WISH, *, clock: float = 1000.0, times: int = 40) -> Counter[NodeId | None]:
        rows = self.table(requirements, clock)
        found = (worker_choice.choose_worker(requirements, rows, random.Random(seed)) for seed in range(times))
        return Counter(None if row is None else row.node for row in found)


# --- access -------------------------------------------------------------------------------------------------------------


def test_workers_without_the_model_are_no_candidates() -> None:
    pool = WorkerPool()
    pool.worker(1)
    pool.directory.worker(2, "another")
    assert pool.nodes() == [node_id(1)]


@pytest.mark.parametrize(
    ("machines", "owner", "labels", "may"),
    [
        pytest.param(Machines.GROUP, "", {}, True, id="the operator's machine"),
        pytest.param(Machines.GROUP, str(OTHER), {}, True, id="a lent machine serves the group"),
        pytest.param(Machines.GROUP, str(OTHER), {"shared": "no"}, False, id="unless its owner doesn't share it"),
        pytest.param(Machines.GROUP, str(USER), {"shared": "no"}, True, id="an unshared machine serves its owner"),
        pytest.param(Machines.TRUSTED, "", {}, True, id="trusted: the operator's machine"),
        pytest.param(Machines.TRUSTED, str(OTHER), {}, False, id="trusted: another user's machine"),
        pytest.param(Machines.TRUSTED, str(OTHER), {"trusted": "yes"}, True, id="trusted: another user's machine with trusted=yes"),
        pytest.param(Machines.TRUSTED, str(OTHER), {"trusted": "no"}, False, id="trusted: another user's machine with trusted=no"),
        pytest.param(Machines.TRUSTED, str(OTHER), {"trusted": "yes", "shared": "no"}, False, id="trusted: trusted=yes, but not shared"),
        pytest.param(Machines.TRUSTED, str(USER), {}, True, id="trusted: the user's own machine"),
        pytest.param(Machines.INTERNAL, "", {}, True, id="internal: the operator's machine"),
        pytest.param(Machines.INTERNAL, str(OTHER), {"trusted": "yes"}, False, id="internal: another user's machine with trusted=yes"),
        pytest.param(Machines.INTERNAL, str(USER), {}, True, id="internal: the user's own machine"),
        pytest.param(Machines.OWN, "", {}, False, id="own: the operator's machine"),
        pytest.param(Machines.OWN, str(OTHER), {"trusted": "yes"}, False, id="own: another user's machine"),
        pytest.param(Machines.OWN, str(USER), {"shared": "no"}, True, id="own: the user's own machine"),
    ],
)
def test_which_machines_may_see_a_prompt(machines: Machines, owner: str, labels: dict[str, str], may: bool) -> None:
    pool = WorkerPool()
    pool.worker(1, owner=owner, labels=labels)
    requirements = structs.replace(WISH, placement=Placement(machines))
    if may:
        assert pool.nodes(requirements) == [node_id(1)]
    else:
        with pytest.raises(errors.NotReachable, match=r"shared=no|not one of the machines that the policy allows"):
            pool.nodes(requirements)


#: A worker's owner and labels.
_worker = st.tuples(
    st.sampled_from(["", str(USER), str(OTHER)]), st.dictionaries(st.sampled_from(["trusted", "shared"]), st.sampled_from(["yes", "no"]))
)


@given(
    st.lists(_worker, min_size=1, max_size=6), st.sampled_from([Machines.GROUP, Machines.TRUSTED]), st.sets(st.integers(0, 5)), st.data()
)
def test_a_retry_never_reaches_a_worker_that_the_first_attempt_could_not_use(
    machines: list[tuple[str, dict[str, str]]], rule: Machines, failed: set[int], data: st.DataObject
) -> None:
    pool = WorkerPool()
    for number, (owner, labels) in enumerate(machines):
        pool.worker(number, owner=owner, labels=labels, digest=data.draw(st.sampled_from("ab")))

    def may(requirements: WorkerRequirements) -> set[NodeId]:
        try:
            return set(pool.nodes(structs.replace(requirements, placement=Placement(rule))))
        except errors.NotReachable:
            return set()

    first, again = may(WISH), may(structs.replace(WISH, excluded=frozenset(map(node_id, failed)), origin=ResumeOrigin("a")))
    assert again <= first - set(map(node_id, failed))
    for number, (owner, labels) in enumerate(machines):
        if node_id(number) in first:
            assert owner == str(USER) or labels.get("shared") != "no"
            assert rule is Machines.GROUP or owner in ("", str(USER)) or labels.get("trusted") == "yes"


def test_none_of_ten_thousand_choices_is_a_worker_that_may_not_see_the_prompt() -> None:
    rng, placed = random.Random(7), 0
    for _ in range(200):
        pool = WorkerPool()
        tenants = [UserId(UUID(int=number)) for number in range(1, 5)]
        for number in range(6):
            owner = rng.choice(["", *map(str, tenants)])
            labels = {label: rng.choice(["yes", "no"]) for label in ("trusted", "shared") if rng.random() < 0.5}
            pool.worker(number, owner=owner, labels=labels, slots=100)
        rule = rng.choice([Machines.GROUP, Machines.TRUSTED])
        for _ in range(50):
            asking = rng.choice(tenants)
            requirements = WorkerRequirements(
                M,
                asking,
                asking,
                10,
                10,
                excluded=frozenset(map(node_id, rng.sample(range(6), rng.randint(0, 2)))),
                placement=Placement(rule),
            )
            try:
                row = worker_choice.choose_worker(requirements, worker_choice.eligible(requirements, pool.table(requirements)), rng)
            except errors.NotReachable:
                continue
            assert row is not None
            announced = row.worker.announcement
            assert row.node not in requirements.excluded
            if announced.owner != str(requirements.tenant):
                assert announced.labels.get("shared") != "no"
                assert rule is Machines.GROUP or not announced.owner or announced.labels.get("trusted") == "yes"
            pool.known.occupancy.begin(row.node, M)
            placed += 1
    assert placed > 8_000


def test_only_a_worker_with_the_same_file_resumes_an_answer() -> None:
    pool = WorkerPool()
    pool.worker(1, digest="a")
    pool.worker(2, digest="b")
    assert pool.nodes(structs.replace(WISH, origin=ResumeOrigin("b"))) == [node_id(2)]
    with pytest.raises(errors.NotReachable, match="has another file of the model"):
        pool.nodes(structs.replace(WISH, origin=ResumeOrigin("c")))


def test_no_worker_and_no_allowed_worker_have_different_errors() -> None:
    with pytest.raises(errors.NotReachable, match="no worker can run m now"):
        WorkerPool().nodes()


# --- preferences -------------------------------------------------------------------------------------------------------


def test_the_less_loaded_of_two_workers_is_chosen() -> None:
    pool = WorkerPool()
    pool.worker(1, running=3)
    pool.worker(2, running=1)
    assert pool.chosen() == {node_id(2): 40}


def test_a_burst_is_spread_before_the_next_announcement() -> None:
    pool, rng = WorkerPool(), random.Random(3)
    for number in range(4):
        pool.worker(number, slots=20)
    counts: Counter[NodeId] = Counter()
    for _ in range(40):
        row = worker_choice.choose_worker(WISH, pool.table(), rng)
        assert row is not None
        pool.known.occupancy.begin(row.node, M)
        counts[row.node] += 1
    assert max(counts.values()) - min(counts.values()) <= 4


def test_a_worker_with_the_model_loaded_is_preferred() -> None:
    pool = WorkerPool()
    for number in range(5):
        pool.worker(number, loaded=False)
    pool.worker(9, running=3)
    assert pool.chosen() == {node_id(9): 40}
    pool.worker(9, running=5)
    assert node_id(9) not in pool.chosen(), "a full worker is not waited for while others could load the model"


@pytest.mark.parametrize(
    ("expected_wait", "chosen"), [pytest.param(3.0, 1, id="waiting is faster"), pytest.param(30.0, 2, id="loading is faster")]
)
def test_loading_a_model_elsewhere_counts_as_a_wait_of_ten_seconds(expected_wait: float, chosen: int) -> None:
    pool = WorkerPool()
    pool.worker(1, running=4, expected_wait=expected_wait)
    pool.worker(2, loaded=False)
    assert pool.chosen() == {node_id(chosen): 40}


def test_a_worker_whose_server_asked_for_a_pause_comes_last() -> None:
    pool = WorkerPool()
    pool.worker(1, rests=True)
    assert pool.chosen() == {node_id(1): 40}, "alone, it says how long to wait"
    pool.worker(2, running=4, expected_wait=30)
    assert pool.chosen() == {node_id(2): 40}
    pool.worker(3, loaded=False)
    assert node_id(1) not in pool.chosen()


def test_a_full_worker_gets_one_queued_call_and_no_more() -> None:
    pool = WorkerPool()
    pool.worker(1, running=4)
    assert pool.chosen() == {node_id(1): 40}
    pool.worker(1, running=5)
    assert pool.chosen() == {None: 40}


@pytest.mark.parametrize(("queue", "most"), [(0, 100), (3, 103), (32, 112)])
def test_a_full_worker_gets_no_more_queued_calls_than_it_takes(queue: int, most: int) -> None:
    """Beyond its ENGINE_QUEUE it refused them, though they could have waited at the gateway."""
    pool = WorkerPool()
    pool.worker(1, slots=100, running=most - 1, queue=queue)
    assert pool.chosen() == {node_id(1): 40}
    pool.worker(1, slots=100, running=most, queue=queue)
    assert pool.chosen() == {None: 40}


def test_a_free_worker_is_preferred_to_one_that_would_queue_the_call() -> None:
    pool = WorkerPool()
    pool.worker(1, slots=1, running=1)
    pool.worker(2, slots=100, running=99)
    assert pool.chosen() == {node_id(2): 40}


def test_the_worker_with_the_cached_prefix_is_chosen_unless_it_is_much_busier() -> None:
    pool = WorkerPool()
    for number in range(3):
        pool.worker(number, running=1 if number == 1 else 0, slots=8)
    known = structs.replace(WISH, prefix_hashes=(b"1", b"2", b"3"))
    pool.known.prefix_affinity.record(M, (b"1", b"2"), node_id(1), now=900)
    assert pool.chosen(known) == {node_id(1): 40}
    assert node_id(1) not in pool.chosen(structs.replace(WISH, prefix_hashes=(b"1", b"x", b"y", b"z"))), (
        "a quarter of the prefix isn't worth it"
    )
    assert node_id(1) not in pool.chosen(known, clock=1201), "it was too long ago"
    pool.worker(1, running=4, slots=8)
    assert node_id(1) not in pool.chosen(known)


def test_a_restarted_worker_has_no_cached_prefixes() -> None:
    pool = WorkerPool()
    pool.worker(1, running=1)
    pool.worker(2)
    known = structs.replace(WISH, prefix_hashes=(b"1",))
    pool.known.prefix_affinity.record(M, (b"1",), node_id(1), now=900)
    pool.directory.mark_gone(node_id(1), "stopped")
    pool.worker(1, running=1)
    assert pool.chosen(known) == {node_id(2): 40}


def test_a_new_worker_gets_a_tenth_of_its_share_and_all_of_it_after_30_s() -> None:
    pool = WorkerPool()
    pool.worker(1, slots=100, running=50)
    pool.worker(2, slots=100)
    pool.directory.mark_gone(node_id(2), "its link died")
    pool.worker(2, slots=100)
    assert 50 <= pool.chosen(times=1000)[node_id(2)] <= 160
    assert 450 <= pool.chosen(clock=1015, times=1000)[node_id(2)] <= 650
    assert pool.chosen(clock=1031, times=1000)[node_id(2)] == 1000


def test_a_new_worker_takes_requests_that_no_other_can() -> None:
    pool = WorkerPool()
    pool.worker(1, slots=1, running=9)
    pool.worker(2)
    pool.directory.mark_gone(node_id(2), "its link died")
    pool.worker(2)
    assert pool.chosen() == {node_id(2): 40}


def test_a_new_gateway_does_not_take_all_workers_for_new() -> None:
    directory, seen = FakeDirectory(), worker_records.SlowStart()
    directory.worker(1, "m")  # it started months ago
    [entry] = directory.entries(Role.WORKER)
    assert seen.record_start(entry, 5.0, datetime.now(UTC))
    assert worker_records.slow_start_share(5.0 - seen.arrivals[entry.node]) == 1.0


# --- outliers -----------------------------------------------------------------------------------------------------------


def fail(pool: WorkerPool, number: int, times: int = 5, now: float = 1000.0, error: errors.AimeshError | None = None) -> None:
    for _ in range(times):
        pool.known.outliers.record_failure(node_id(number), M, error or errors.LinkLost("x"), now)


def sound(pool: WorkerPool, clock: float = 1000.0) -> list[NodeId]:
    return [row.node for row in worker_choice.without_outliers(pool.table(clock=clock))]


def test_five_failures_in_a_row_eject_a_worker_for_longer_each_time() -> None:
    pool = WorkerPool()
    pool.worker(1)
    pool.worker(2)
    fail(pool, 1, 4)
    assert len(sound(pool)) == 2
    pool.known.outliers.record_delivery(node_id(1), M)
    fail(pool, 1, 4)
    assert len(sound(pool)) == 2
    fail(pool, 1, 1)
    assert sound(pool) == sound(pool, 1029) == [node_id(2)]
    assert len(sound(pool, 1030)) == 2
    fail(pool, 1, now=1031)
    assert sound(pool, 1031 + 59) == [node_id(2)]
    assert len(sound(pool, 1031 + 60)) == 2
    fail(pool, 1, now=1031 + 60 + 301)
    assert len(sound(pool, 1031 + 60 + 301 + 30)) == 2, "it was healthy for so long that its record starts again"


def test_an_ejection_lasts_five_minutes_at_most() -> None:
    pool, now = WorkerPool(), 1000.0
    pool.worker(1)
    pool.worker(2)
    for _ in range(20):
        fail(pool, 1, now=now)
        now += pool.known.outliers.ejection_seconds(node_id(1), M, now)
    fail(pool, 1, now=now)
    assert pool.known.outliers.ejection_seconds(node_id(1), M, now) == 300.0


def test_the_last_worker_of_a_model_is_never_ejected() -> None:
    pool = WorkerPool()
    for number in (1, 2, 3):
        pool.worker(number)
        fail(pool, number, now=1000.0 + number)
    assert sound(pool, 1010) == [node_id(1)], "the worker whose pause ends first"
    assert pool.chosen(clock=1010) == {node_id(1): 40}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["fails", "delivers", "goes", "comes"]), st.floats(0, 20)), max_size=120))
def test_one_worker_always_stays_however_many_fail(history: list[tuple[int, str, float]]) -> None:
    pool, now = WorkerPool(), 1000.0
    for number in range(4):
        pool.worker(number)
    for number, what, seconds in history:
        now += seconds
        match what:
            case "fails":
                fail(pool, number, 5, now)
            case "delivers":
                pool.known.outliers.record_delivery(node_id(number), M)
            case "goes":
                pool.directory.mark_gone(node_id(number), "stopped")
            case _:
                pool.worker(number)
        there = pool.table(clock=now)
        if there:
            assert worker_choice.choose_worker(WISH, there, random.Random(1)) is not None


def test_a_worker_that_is_full_or_stopping_is_not_an_outlier() -> None:
    pool = WorkerPool()
    pool.worker(1)
    pool.worker(2)
    for error in (errors.Overloaded("x"), errors.Draining("x"), errors.BadRequest("x"), errors.UnknownMethod("x")):
        fail(pool, 1, 20, error=error)
    assert len(sound(pool)) == 2


# --- slots --------------------------------------------------------------------------------------------------------------


def busy(pool: WorkerPool) -> int:
    return pool.table()[0].capacity.busy


def test_a_call_in_the_workers_announcement_is_not_counted_twice() -> None:
    pool = WorkerPool()
    node = pool.worker(1)
    for _ in range(2):
        pool.known.occupancy.begin(node, M)
    assert busy(pool) == 2
    pool.worker(1, running=2)
    assert busy(pool) == 2


def test_a_call_of_another_gateway_counts_until_the_next_announcement() -> None:
    pool = WorkerPool()
    node = pool.worker(1)
    pool.known.occupancy.begin(node, M)
    pool.worker(1, running=3)
    assert busy(pool) == 3
    pool.known.occupancy.end(node, M, 0.0)
    assert busy(pool) == 2, "our request's end is known before the worker announces it"
    pool.worker(1)
    assert busy(pool) == 0


def test_a_worker_that_does_not_report_per_model_is_counted_as_a_whole() -> None:
    pool = WorkerPool()
    pool.directory.worker(1, "m", "n", load=WorkerLoad(slots=4, running=3))
    pool.known.occupancy.begin(node_id(1), ModelName("n"))
    assert busy(pool) == 4
    pool.known.occupancy.end(node_id(1), ModelName("n"), 0.0)
    assert pool.known.occupancy.total() == 0
