"""Which worker a request is sent to."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.scheduling import worker_choice, worker_records
from services.gateway.scheduling.candidates import Candidate, WorkerStats
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_choice import PromptPrivacy
from shared import errors
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.types import ModelName, NodeId, Role, UserId
from tests.services.gateway.fakes import USER, FakeDirectory, node_id

M = ModelName("m")
WISH = WorkerRequirements(M, USER, USER, 10, 10)
OTHER = UserId(UUID(int=99))


class Site:
    """Workers, and what a gateway has recorded about them."""

    def __init__(self) -> None:
        self.directory, self.known = FakeDirectory(), WorkerStats()
        self.directory.watch(lambda entry: self.known.apply_change(entry, 1000.0, datetime.now(UTC)))

    def worker(
        self, number: int, *, running: int = 0, slots: int = 4, loaded: bool = True, digest: str = "", expected_wait: float = 0, **more: Any
    ) -> NodeId:
        self.directory.worker(number, "m", load=WorkerLoad(slots, running, 0, expected_wait), **more)
        before = self.directory.find(node_id(number))
        assert before is not None
        offer = ModelOffer(M, 2048, digest, loaded=loaded, slots=slots, busy=running)
        self.directory.apply_announcement(msgspec.structs.replace(before.announcement, models=(offer,)), "nats")
        return node_id(number)

    def table(self, requirements: WorkerRequirements = WISH, clock: float = 1000.0) -> list[Candidate]:
        return self.known.table(requirements, self.directory.usable(Role.WORKER), clock)

    def nodes(self, requirements: WorkerRequirements = WISH, rule: PromptPrivacy = PromptPrivacy.GROUP) -> list[NodeId]:
        return [row.node for row in worker_choice.eligible(requirements, self.table(requirements), rule)]

    def chosen(self, requirements: WorkerRequirements = WISH, *, clock: float = 1000.0, times: int = 40) -> Counter[NodeId | None]:
        rows = self.table(requirements, clock)
        found = (worker_choice.choose_worker(requirements, rows, random.Random(seed)) for seed in range(times))
        return Counter(None if row is None else row.node for row in found)


# --- access -------------------------------------------------------------------------------------------------------------


def test_workers_without_the_model_are_no_candidates() -> None:
    site = Site()
    site.worker(1)
    site.directory.worker(2, "another")
    assert site.nodes() == [node_id(1)]


@pytest.mark.parametrize(
    ("rule", "owner", "labels", "may"),
    [
        pytest.param(PromptPrivacy.GROUP, "", {}, True, id="the operator's machine"),
        pytest.param(PromptPrivacy.GROUP, str(OTHER), {}, True, id="a lent machine serves the group"),
        pytest.param(PromptPrivacy.GROUP, str(OTHER), {"shared": "no"}, False, id="unless its owner doesn't share it"),
        pytest.param(PromptPrivacy.GROUP, str(USER), {"shared": "no"}, True, id="an unshared machine serves its owner"),
        pytest.param(PromptPrivacy.TRUSTED, "", {}, True, id="trusted: the operator's machine"),
        pytest.param(PromptPrivacy.TRUSTED, str(OTHER), {}, False, id="trusted: another user's machine"),
        pytest.param(PromptPrivacy.TRUSTED, str(OTHER), {"trusted": "yes"}, True, id="trusted: another user's machine with trusted=yes"),
        pytest.param(PromptPrivacy.TRUSTED, str(OTHER), {"trusted": "no"}, False, id="trusted: another user's machine with trusted=no"),
        pytest.param(
            PromptPrivacy.TRUSTED, str(OTHER), {"trusted": "yes", "shared": "no"}, False, id="trusted: trusted=yes, but not shared"
        ),
        pytest.param(PromptPrivacy.TRUSTED, str(USER), {}, True, id="trusted: the user's own machine"),
    ],
)
def test_prompt_privacy(rule: PromptPrivacy, owner: str, labels: dict[str, str], may: bool) -> None:
    site = Site()
    site.worker(1, owner=owner, labels=labels)
    if may:
        assert site.nodes(rule=rule) == [node_id(1)]
    else:
        with pytest.raises(errors.NotReachable, match=r"shared=no|not labeled trusted"):
            site.nodes(rule=rule)


#: Owner and labels of a worker, the file that it has.
_worker = st.tuples(
    st.sampled_from(["", str(USER), str(OTHER)]), st.dictionaries(st.sampled_from(["trusted", "shared"]), st.sampled_from(["yes", "no"]))
)


@given(st.lists(_worker, min_size=1, max_size=6), st.sampled_from(PromptPrivacy), st.sets(st.integers(0, 5)), st.data())
def test_a_retry_never_reaches_a_worker_that_the_first_attempt_could_not_use(
    machines: list[tuple[str, dict[str, str]]], rule: PromptPrivacy, failed: set[int], data: st.DataObject
) -> None:
    site = Site()
    for number, (owner, labels) in enumerate(machines):
        site.worker(number, owner=owner, labels=labels, digest=data.draw(st.sampled_from("ab")))

    def may(requirements: WorkerRequirements) -> set[NodeId]:
        try:
            return set(site.nodes(requirements, rule))
        except errors.NotReachable:
            return set()

    first, again = may(WISH), may(replace(WISH, excluded=frozenset(map(node_id, failed)), digest="a"))
    assert again <= first - set(map(node_id, failed))
    for number, (owner, labels) in enumerate(machines):
        if node_id(number) in first:
            assert owner == str(USER) or labels.get("shared") != "no"
            assert rule is PromptPrivacy.GROUP or owner in ("", str(USER)) or labels.get("trusted") == "yes"


def test_none_of_ten_thousand_choices_is_a_worker_that_may_not_see_the_prompt() -> None:
    rng, placed = random.Random(7), 0
    for _ in range(200):
        site = Site()
        tenants = [UserId(UUID(int=number)) for number in range(1, 5)]
        for number in range(6):
            owner = rng.choice(["", *map(str, tenants)])
            labels = {label: rng.choice(["yes", "no"]) for label in ("trusted", "shared") if rng.random() < 0.5}
            site.worker(number, owner=owner, labels=labels, slots=100)
        rule = rng.choice(list(PromptPrivacy))
        for _ in range(50):
            asking = rng.choice(tenants)
            requirements = WorkerRequirements(
                M, asking, asking, 10, 10, excluded=frozenset(map(node_id, rng.sample(range(6), rng.randint(0, 2))))
            )
            try:
                row = worker_choice.choose_worker(requirements, worker_choice.eligible(requirements, site.table(requirements), rule), rng)
            except errors.NotReachable:
                continue
            assert row is not None
            announced = row.worker.announcement
            assert row.node not in requirements.excluded
            if announced.owner != str(requirements.tenant):
                assert announced.labels.get("shared") != "no"
                assert rule is PromptPrivacy.GROUP or not announced.owner or announced.labels.get("trusted") == "yes"
            site.known.occupancy.begin(row.node, M)
            placed += 1
    assert placed > 8_000


def test_only_a_worker_with_the_same_file_resumes_an_answer() -> None:
    site = Site()
    site.worker(1, digest="a")
    site.worker(2, digest="b")
    assert site.nodes(replace(WISH, digest="b")) == [node_id(2)]
    with pytest.raises(errors.NotReachable, match="has another file of the model"):
        site.nodes(replace(WISH, digest="c"))


def test_no_worker_and_no_allowed_worker_have_different_errors() -> None:
    with pytest.raises(errors.NotReachable, match="no worker can run m now"):
        Site().nodes()


# --- preferences -------------------------------------------------------------------------------------------------------


def test_the_less_loaded_of_two_workers_is_chosen() -> None:
    site = Site()
    site.worker(1, running=3)
    site.worker(2, running=1)
    assert site.chosen() == {node_id(2): 40}


def test_a_burst_is_spread_before_the_next_announcement() -> None:
    site, rng = Site(), random.Random(3)
    for number in range(4):
        site.worker(number, slots=20)
    counts: Counter[NodeId] = Counter()
    for _ in range(40):
        row = worker_choice.choose_worker(WISH, site.table(), rng)
        assert row is not None
        site.known.occupancy.begin(row.node, M)
        counts[row.node] += 1
    assert max(counts.values()) - min(counts.values()) <= 4


def test_a_worker_with_the_model_loaded_is_preferred() -> None:
    site = Site()
    for number in range(5):
        site.worker(number, loaded=False)
    site.worker(9, running=3)
    assert site.chosen() == {node_id(9): 40}
    site.worker(9, running=5)
    assert node_id(9) not in site.chosen(), "a full worker is not waited for while others could load the model"


@pytest.mark.parametrize(
    ("expected_wait", "chosen"), [pytest.param(3.0, 1, id="waiting is faster"), pytest.param(30.0, 2, id="loading is faster")]
)
def test_loading_a_model_elsewhere_counts_as_a_wait_of_ten_seconds(expected_wait: float, chosen: int) -> None:
    site = Site()
    site.worker(1, running=4, expected_wait=expected_wait)
    site.worker(2, loaded=False)
    assert site.chosen() == {node_id(chosen): 40}


def test_a_full_worker_gets_one_queued_call_and_no_more() -> None:
    site = Site()
    site.worker(1, running=4)
    assert site.chosen() == {node_id(1): 40}
    site.worker(1, running=5)
    assert site.chosen() == {None: 40}


def test_a_free_worker_is_preferred_to_one_that_would_queue_the_call() -> None:
    site = Site()
    site.worker(1, slots=1, running=1)
    site.worker(2, slots=100, running=99)
    assert site.chosen() == {node_id(2): 40}


def test_the_worker_with_the_cached_prefix_is_chosen_unless_it_is_much_busier() -> None:
    site = Site()
    for number in range(3):
        site.worker(number, running=1 if number == 1 else 0, slots=8)
    known = replace(WISH, beginnings=(b"1", b"2", b"3"))
    site.known.prefix_affinity.record(M, (b"1", b"2"), node_id(1), now=900)
    assert site.chosen(known) == {node_id(1): 40}
    assert node_id(1) not in site.chosen(replace(WISH, beginnings=(b"1", b"x", b"y", b"z"))), "a quarter of the prefix isn't worth it"
    assert node_id(1) not in site.chosen(known, clock=1201), "it was too long ago"
    site.worker(1, running=4, slots=8)
    assert node_id(1) not in site.chosen(known)


def test_a_restarted_worker_has_no_cached_prefixes() -> None:
    site = Site()
    site.worker(1, running=1)
    site.worker(2)
    known = replace(WISH, beginnings=(b"1",))
    site.known.prefix_affinity.record(M, (b"1",), node_id(1), now=900)
    site.directory.mark_gone(node_id(1), "stopped")
    site.worker(1, running=1)
    assert site.chosen(known) == {node_id(2): 40}


def test_a_new_worker_gets_a_tenth_of_its_share_and_all_of_it_after_30_s() -> None:
    site = Site()
    site.worker(1, slots=100, running=50)
    site.worker(2, slots=100)
    site.directory.mark_gone(node_id(2), "its link died")
    site.worker(2, slots=100)
    assert 50 <= site.chosen(times=1000)[node_id(2)] <= 160
    assert 450 <= site.chosen(clock=1015, times=1000)[node_id(2)] <= 650
    assert site.chosen(clock=1031, times=1000)[node_id(2)] == 1000


def test_a_new_worker_takes_requests_that_no_other_can() -> None:
    site = Site()
    site.worker(1, slots=1, running=9)
    site.worker(2)
    site.directory.mark_gone(node_id(2), "its link died")
    site.worker(2)
    assert site.chosen() == {node_id(2): 40}


def test_a_new_gateway_does_not_take_all_workers_for_new() -> None:
    directory, seen = FakeDirectory(), worker_records.SlowStart()
    directory.worker(1, "m")  # it started months ago
    [entry] = directory.entries(Role.WORKER)
    assert seen.record_start(entry, 5.0, datetime.now(UTC))
    assert seen.share(entry.node, 5.0) == 1.0


# --- outliers -----------------------------------------------------------------------------------------------------------


def fail(site: Site, number: int, times: int = 5, now: float = 1000.0, error: errors.AimeshError | None = None) -> None:
    for _ in range(times):
        site.known.outliers.record_failure(node_id(number), M, error or errors.LinkLost("x"), now)


def sound(site: Site, clock: float = 1000.0) -> list[NodeId]:
    return [row.node for row in worker_choice.without_outliers(site.table(clock=clock))]


def test_five_failures_in_a_row_eject_a_worker_for_longer_each_time() -> None:
    site = Site()
    site.worker(1)
    site.worker(2)
    fail(site, 1, 4)
    assert len(sound(site)) == 2
    site.known.outliers.record_delivery(node_id(1), M)
    fail(site, 1, 4)
    assert len(sound(site)) == 2
    fail(site, 1, 1)
    assert sound(site) == sound(site, 1029) == [node_id(2)]
    assert len(sound(site, 1030)) == 2
    fail(site, 1, now=1031)
    assert sound(site, 1031 + 59) == [node_id(2)]
    assert len(sound(site, 1031 + 60)) == 2
    fail(site, 1, now=1031 + 60 + 301)
    assert len(sound(site, 1031 + 60 + 301 + 30)) == 2, "it was healthy for so long that its record starts again"


def test_an_ejection_lasts_five_minutes_at_most() -> None:
    site, now = Site(), 1000.0
    site.worker(1)
    site.worker(2)
    for _ in range(20):
        fail(site, 1, now=now)
        now += site.known.outliers.ejection_seconds(node_id(1), M, now)
    fail(site, 1, now=now)
    assert site.known.outliers.ejection_seconds(node_id(1), M, now) == 300.0


def test_the_last_worker_of_a_model_is_never_ejected() -> None:
    site = Site()
    for number in (1, 2, 3):
        site.worker(number)
        fail(site, number, now=1000.0 + number)
    assert sound(site, 1010) == [node_id(1)], "the worker whose pause ends first"
    assert site.chosen(clock=1010) == {node_id(1): 40}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["fails", "delivers", "goes", "comes"]), st.floats(0, 20)), max_size=120))
def test_one_worker_always_stays_however_many_fail(history: list[tuple[int, str, float]]) -> None:
    site, now = Site(), 1000.0
    for number in range(4):
        site.worker(number)
    for number, what, seconds in history:
        now += seconds
        match what:
            case "fails":
                fail(site, number, 5, now)
            case "delivers":
                site.known.outliers.record_delivery(node_id(number), M)
            case "goes":
                site.directory.mark_gone(node_id(number), "stopped")
            case _:
                site.worker(number)
        there = site.table(clock=now)
        if there:
            assert worker_choice.choose_worker(WISH, there, random.Random(1)) is not None


def test_a_worker_that_is_full_or_stopping_is_not_an_outlier() -> None:
    site = Site()
    site.worker(1)
    site.worker(2)
    for error in (errors.Overloaded("x"), errors.Draining("x"), errors.BadRequest("x"), errors.UnknownMethod("x")):
        fail(site, 1, 20, error=error)
    assert len(sound(site)) == 2


# --- slots --------------------------------------------------------------------------------------------------------------


def busy(site: Site) -> int:
    return site.table()[0].capacity.busy


def test_a_call_in_the_workers_announcement_is_not_counted_twice() -> None:
    site = Site()
    node = site.worker(1)
    for _ in range(2):
        site.known.occupancy.begin(node, M)
    assert busy(site) == 2
    site.worker(1, running=2)
    assert busy(site) == 2


def test_a_call_of_another_gateway_counts_until_the_next_announcement() -> None:
    site = Site()
    node = site.worker(1)
    site.known.occupancy.begin(node, M)
    site.worker(1, running=3)
    assert busy(site) == 3
    site.known.occupancy.end(node, M)
    assert busy(site) == 2, "our request's end is known before the worker announces it"
    site.worker(1)
    assert busy(site) == 0


def test_a_worker_that_does_not_report_per_model_is_counted_as_a_whole() -> None:
    site = Site()
    site.directory.worker(1, "m", "n", load=WorkerLoad(slots=4, running=3))
    site.known.occupancy.begin(node_id(1), ModelName("n"))
    assert busy(site) == 4
    site.known.occupancy.end(node_id(1), ModelName("n"))
    assert site.known.occupancy.total() == 0
