"""Detecting two processes with one node key: from what was heard and when, decide which of them must stop."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from shared.protocol import duplicate_keys
from shared.protocol.directory import Announcement
from shared.protocol.duplicate_keys import LATE_SECONDS, MAX_PROCESSES, MAX_REPORTED, SILENT_SECONDS, DuplicateKeys, process_name
from shared.types import NodeId, Role

NODE = NodeId("UNODE")
#: The machine's clock at the start of each process.
STARTED = {"elder": 100, "younger": 200, "third": 300, "clock set back": 50}


START = datetime(2026, 1, 1, tzinfo=UTC)


def make_announcement(instance: str, *, leaving: bool = False, node: NodeId = NODE) -> Announcement:
    started_at = START + timedelta(seconds=STARTED.get(instance, 400))
    return Announcement(Role.WORKER, node, "1", started_at, leaving=leaving, instance=instance)


def every(seconds: float, instance: str, first: float, last: float) -> list[tuple[float, str]]:
    count = int((last - first) / seconds) + 1
    return [(first + seconds * turn, instance) for turn in range(count)]


@pytest.mark.parametrize(
    ("arrivals", "stops"),
    [
        pytest.param([*every(2, "elder", 0, 20), *every(2, "younger", 11, 21)], {"younger"}, id="a second process is started"),
        pytest.param(
            [*every(2, "elder", 0, 20), *every(2, "younger", 0.1, 20)], {"younger"}, id="both are heard by a node that was just started"
        ),
        pytest.param([*every(2, "elder", 0, 10), *every(2, "younger", 10.5, 30)], set(), id="a quick restart after kill -9"),
        pytest.param(
            [*every(2, "elder", 0, 10), *every(2, "younger", 10.5, 30), (11, "elder"), (12, "elder"), (13.5, "elder")],
            set(),
            id="stale announcements come over the second transport after the restart",
        ),
        pytest.param(
            [*every(2, "elder", 0, 10), *every(2, "younger", 10.5, 30), *[(17, "elder")] * 5],
            set(),
            id="what a suspended machine had buffered comes in one burst",
        ),
        pytest.param(
            [*every(2, "younger", 0, 10), *every(2, "clock set back", 10.5, 30)], set(), id="a restart after the clock was set back"
        ),
        pytest.param(
            [*every(2, "younger", 0, 30), *every(2, "clock set back", 10.5, 30)],
            {"younger"},
            id="the start counts, not who was heard first",
        ),
        pytest.param(
            [*every(2, "elder", 0, 40), *every(2, "younger", 1, 41), *every(2, "third", 1.5, 40)],
            {"younger", "third"},
            id="three processes",
        ),
        pytest.param([*every(2, "elder", 0, 40), *every(2, "younger", 11, 13)], {"younger"}, id="a process that ended soon counts too"),
        pytest.param([*every(6, "elder", 0, 60), *every(7, "younger", 1, 57)], {"younger"}, id="two links that push each other out"),
    ],
)
def test_which_process_must_stop(arrivals: list[tuple[float, str]], stops: set[str]) -> None:
    seen = DuplicateKeys()
    proofs = [instance for at, instance in sorted(arrivals) if seen.record_announcement(make_announcement(instance), at)]
    assert set(seen.younger) == {process_name(NODE, each) for each in stops}
    assert len(proofs) == len(stops), "each is told once"


def late_by(lag: float, instance: str, first: float, last: float) -> list[tuple[float, Announcement]]:
    """Return what a process announces from ``first`` to ``last`` by its machine's clock, as heard over a transport that lags."""
    return [
        (at + lag, msgspec.structs.replace(make_announcement(instance), made_at=START + timedelta(seconds=at)))
        for at, _ in every(2, instance, first, last)
    ]


@pytest.mark.parametrize(
    ("elder_ends", "stops"),
    [pytest.param(199.5, set(), id="a restart"), pytest.param(260, {"younger"}, id="two processes")],
)
def test_a_permanently_lagging_transport_does_not_make_a_restart_a_duplicate(elder_ends: float, stops: set[str]) -> None:
    seen = DuplicateKeys()
    arrivals = [*late_by(20, "elder", 100, elder_ends), *late_by(20, "younger", 200, 260), *late_by(0, "younger", 200, 260)]
    for at, announcement in sorted(arrivals, key=lambda each: each[0]):
        seen.record_announcement(announcement, at)
    assert set(seen.younger) == {process_name(NODE, each) for each in stops}


@pytest.mark.parametrize("wrong_seconds", [-3600, 3600])
def test_a_wrong_clock_hides_a_duplicate_for_at_most_a_minute(wrong_seconds: float) -> None:
    seen = DuplicateKeys()
    wrong = timedelta(seconds=wrong_seconds)
    for at in range(0, 160, 2):
        for instance, begins, clock in (("elder", 0, timedelta()), ("younger", 51, wrong)):
            if at >= begins:
                started_at = START + timedelta(seconds=begins) + clock
                one = msgspec.structs.replace(
                    make_announcement(instance), started_at=started_at, made_at=START + timedelta(seconds=at) + clock
                )
                if seen.record_announcement(one, at):
                    assert at - 51 <= LATE_SECONDS + 5
                    return
    pytest.fail("no contest was found")


def test_the_younger_process_stops_within_ten_seconds() -> None:
    seen = DuplicateKeys()
    arrivals = sorted([*every(2, "elder", 0, 60), *every(2, "younger", 31, 60)])
    assert min(at for at, instance in arrivals if seen.record_announcement(make_announcement(instance), at)) - 31 <= 10


@pytest.mark.parametrize(
    ("role", "believed"), [(Role.GATEWAY, True), (Role.AUTH, True), (Role.METRICS, True), (Role.WORKER, False), (Role.WEB, False)]
)
def test_whose_report_of_a_process_is_trusted(role: Role, believed: bool) -> None:
    told = Announcement(role, NodeId("UPEER"), "1", datetime(2026, 1, 1, tzinfo=UTC), contested=(process_name(NODE, "me"),))
    assert DuplicateKeys().must_stop(process_name(NODE, "me"), told) is believed
    assert not DuplicateKeys().must_stop(process_name(NODE, "another"), told)
    assert not DuplicateKeys().must_stop(process_name(NodeId("UANOTHER"), "me"), told)


def test_a_node_that_announces_another_nodes_instance_stops_nothing() -> None:
    seen = DuplicateKeys()
    other = NodeId("UOTHER")
    for at, instance in sorted([*every(1, "elder", 0, 20), *every(1, "me", 0.5, 20)]):
        seen.record_announcement(make_announcement("me"), at)
        announcement = make_announcement(instance, node=other)
        seen.record_announcement(announcement, at)
        assert not seen.must_stop(process_name(NODE, "me"), announcement)
    assert seen.younger == (process_name(other, "me"),)
    told = Announcement(Role.GATEWAY, NodeId("UPEER"), "1", datetime(2026, 1, 1, tzinfo=UTC), contested=seen.younger)
    assert not DuplicateKeys().must_stop(process_name(NODE, "me"), told)


def test_invented_duplicates_do_not_hide_a_real_one_and_are_forgotten_with_their_node() -> None:
    seen = DuplicateKeys()
    liars = [NodeId(f"U{number}") for number in range(3)]
    for turn in range(10):
        for node in liars:
            for number in range(MAX_PROCESSES):
                seen.record_announcement(make_announcement(f"invented {number}", node=node), 2.0 * turn)
    assert len(seen.younger) == MAX_REPORTED
    for at, instance in sorted([*every(2, "elder", 20, 40), *every(2, "younger", 21, 41)]):
        seen.record_announcement(make_announcement(instance), at)
    assert process_name(NODE, "younger") in seen.younger
    for at in (18 + SILENT_SECONDS + 1, 18 + SILENT_SECONDS + 2):
        seen.record_announcement(make_announcement("elder"), at)
    assert seen.younger == (process_name(NODE, "younger"),)


def test_an_instance_of_any_length_keeps_the_announcement_within_its_limit() -> None:
    seen = DuplicateKeys()
    for turn in range(20):
        seen.record_announcement(make_announcement("elder"), 1.0 * turn)
        seen.record_announcement(make_announcement("x" * 10_000), 1.0 * turn)
    assert seen.younger == ()


def test_a_process_that_left_or_is_silent_is_no_longer_reported() -> None:
    for end in (make_announcement("younger", leaving=True), None):
        seen = DuplicateKeys()
        for at, instance in sorted([*every(2, "elder", 0, 20), *every(2, "younger", 1, 21)]):
            seen.record_announcement(make_announcement(instance), at)
        assert seen.younger == (process_name(NODE, "younger"),)
        if end is not None:
            seen.record_announcement(end, 22)
        seen.record_announcement(make_announcement("elder"), 22 if end is not None else 22 + SILENT_SECONDS)
        assert seen.younger == ()


def test_memory_and_reports_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_keys, "MAX_NODES", 100)
    seen = DuplicateKeys()
    for turn in range(6):
        for number in range(3 * MAX_PROCESSES):
            seen.record_announcement(make_announcement(f"process {number}"), 3.0 * turn)
            seen.record_announcement(make_announcement(f"node {number} a", node=NodeId(f"U{number}")), 3.0 * turn)
            seen.record_announcement(make_announcement(f"node {number} b", node=NodeId(f"U{number}")), 3.0 * turn)
    assert len(seen.younger) == MAX_REPORTED
    for number in range(1000):
        seen.record_announcement(make_announcement("x", node=NodeId(f"V{number}")), 20.0)
    assert len(seen._nodes) <= 101
    assert seen.younger == ()
