"""Which nodes are alive, since when, and which one to pick: the directory, with given facts and a fake clock."""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.protocol import directory
from shared.protocol.directory import Announcement, Directory, DirectoryEntry, ModelOffer, PeerRoute, WorkerLoad
from shared.types import ModelName, NodeId, Role

STARTED = datetime(2026, 1, 2, tzinfo=UTC)
WORKER = NodeId("UWORKER")


@dataclass
class Hours:
    """A directory, its clock, and the events that its watcher received."""

    seconds: float = 0.0
    told: list[DirectoryEntry] = field(default_factory=list)
    nodes: Directory = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = Directory(lambda: self.seconds, lambda: STARTED + timedelta(seconds=self.seconds))
        self.nodes.watch(self.told.append)

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self.nodes.tick()


def make_announcement(node: NodeId = WORKER, **changes: object) -> Announcement:
    return msgspec.structs.replace(Announcement(Role.WORKER, node, "0.1.0", STARTED), **changes)


def test_a_silent_node_is_gone_within_six_seconds() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    silent = 0.0
    while here.nodes.usable(Role.WORKER):
        here.pass_by(directory.TICK_SECONDS)
        silent += directory.TICK_SECONDS
    assert 2 * directory.ANNOUNCE_SECONDS < silent <= 6
    (entry,) = here.nodes.entries(Role.WORKER)
    assert "silent for" in entry.why_not
    assert entry.since == STARTED + timedelta(seconds=silent)


def test_one_lost_announcement_changes_nothing() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.pass_by(2 * directory.ANNOUNCE_SECONDS + 1)
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.pass_by(directory.ANNOUNCE_SECONDS)
    assert [entry.node for entry in here.nodes.usable(Role.WORKER)] == [WORKER]
    assert len(here.told) == 1


def test_a_node_is_back_with_its_next_announcement_and_alive_since_then() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.pass_by(2)
    here.nodes.mark_gone(WORKER, "its link died")
    here.pass_by(1)
    here.nodes.apply_announcement(make_announcement(), "nats")
    assert [(entry.alive, entry.since.second) for entry in here.told] == [(True, 0), (False, 2), (True, 3)]


def test_a_node_that_stopped_before_we_heard_of_its_revocation_is_listed_as_revoked() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.nodes.mark_gone(WORKER, "stopped")
    here.nodes.mark_gone(WORKER, "its link died")
    assert [entry.why_gone for entry in here.nodes.entries(Role.WORKER)] == ["stopped"]
    here.nodes.mark_gone(WORKER, "revoked by an administrator", corrects=True)
    assert [entry.why_gone for entry in here.nodes.entries(Role.WORKER)] == ["revoked by an administrator"]


@pytest.mark.parametrize(("reason", "said"), [("its user logged out", "its user logged out"), ("", "stopped")])
def test_a_node_that_leaves_says_why(reason: str, said: str) -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.nodes.apply_announcement(make_announcement(leaving=True, leave_reason=reason), "nats")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.alive, entry.has_left, entry.why_gone) == (False, True, said)
    here.nodes.apply_announcement(make_announcement(started_at=STARTED + timedelta(seconds=1)), "nats")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.alive, entry.has_left) == (True, False)


def test_a_restart_under_the_same_key_is_reported_even_if_unnoticed() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.pass_by(1)
    here.nodes.apply_announcement(make_announcement(started_at=STARTED + timedelta(seconds=1)), "nats")
    assert [entry.since.second for entry in here.told] == [0, 1]


def test_a_node_on_two_transports_is_one_node_on_the_better_path() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "punched", "swarm")
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.path, [route.transport for route in entry.routes]) == ("nats", ["nats", "swarm"])
    assert [told.path for told in here.told] == ["punched", "nats"]


def test_a_node_moves_when_a_path_dies_and_is_gone_with_the_last_one() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.apply_announcement(make_announcement(), "direct", "swarm")
    here.nodes.remove_route(WORKER, "nats", "the link fell silent")
    (entry,) = here.nodes.usable(Role.WORKER)
    assert (entry.path, entry.alive, entry.why_not) == ("direct", True, "")
    here.nodes.remove_route(WORKER, "swarm", "its link ended")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.path, entry.alive, entry.why_not) == ("direct", False, "its link ended")
    assert not here.nodes.usable(Role.WORKER)


def test_silence_on_one_transport_ends_only_that_path() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.apply_announcement(make_announcement(), "relayed", "swarm")
    here.seconds += directory.GONE_AFTER_SECONDS - 1
    here.nodes.apply_announcement(make_announcement(), "relayed", "swarm")
    here.pass_by(2)
    (entry,) = here.nodes.usable(Role.WORKER)
    assert entry.path == "relayed"


def test_a_relayed_link_that_becomes_direct_is_shown_as_direct() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "relayed", "swarm")
    here.nodes.apply_announcement(make_announcement(), "punched", "swarm")
    assert [told.path for told in here.told] == ["relayed", "punched"]
    assert len(here.nodes.entries(Role.WORKER)[0].routes) == 1


def test_nodes_stay_alive_while_our_own_connection_is_down() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.transport_lost("nats")
    here.seconds += 60
    here.nodes.tick(listening=())
    assert here.nodes.usable(Role.WORKER)


def test_nodes_behind_a_lost_connection_are_called_once_they_are_heard_again() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.apply_announcement(make_announcement(NodeId("UOTHER")), "direct", "swarm")
    assert len(here.nodes.reachable(Role.WORKER)) == 2
    here.nodes.transport_lost("nats")
    assert [entry.node for entry in here.nodes.reachable(Role.WORKER)] == [NodeId("UOTHER")]
    here.nodes.transport_back("nats")
    here.seconds += 1
    here.told.clear()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    assert len(here.nodes.reachable(Role.WORKER)) == 2
    assert [told.node for told in here.told] == [WORKER], "who waits for it must hear of it"


def test_the_silence_behind_a_lost_connection_counts_from_its_return() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.transport_lost("nats")
    here.seconds += 60
    here.nodes.transport_back("nats")
    here.pass_by(directory.GONE_AFTER_SECONDS)
    assert here.nodes.usable(Role.WORKER)
    assert not here.nodes.reachable(Role.WORKER)
    here.pass_by(directory.TICK_SECONDS)
    assert not here.nodes.usable(Role.WORKER)


def test_while_one_transport_is_down_the_other_is_used_immediately() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.apply_announcement(make_announcement(), "direct", "swarm")
    here.nodes.transport_lost("nats")
    assert here.nodes.usable(Role.WORKER)[0].path == "direct"


def test_a_restart_drops_the_paths_of_the_old_process() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats", "nats")
    here.nodes.apply_announcement(make_announcement(), "direct", "swarm")
    here.nodes.apply_announcement(make_announcement(started_at=STARTED + timedelta(seconds=5)), "direct", "swarm")
    assert [route.transport for route in here.nodes.usable(Role.WORKER)[0].routes] == ["swarm"]


def test_a_refused_node_is_shown_with_the_reason_and_an_alive_one_stays_alive() -> None:
    here = Hours()
    here.nodes.add_refused(WORKER, Role.WORKER, "aimesh/0.1.0", "the certificate expired 2 h ago")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.refused, entry.alive, entry.why_not) == (True, False, "the certificate expired 2 h ago")
    here.pass_by(10)
    here.nodes.add_refused(WORKER, Role.WORKER, "aimesh/0.1.0", "the certificate expired 3 h ago")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.why_not, entry.since) == ("the certificate expired 3 h ago", STARTED)
    here.nodes.apply_announcement(make_announcement(), "direct", "swarm")
    here.nodes.add_refused(WORKER, Role.WORKER, "aimesh/0.1.0", "whatever")
    (entry,) = here.nodes.entries(Role.WORKER)
    assert (entry.refused, entry.alive) == (False, True)


def test_a_repeated_announcement_is_only_a_change_for_a_busy_node() -> None:
    here = Hours()
    for load in (WorkerLoad(), WorkerLoad(), WorkerLoad(running=1), WorkerLoad(running=1)):
        here.nodes.apply_announcement(make_announcement(load=load), "nats")
    assert [entry.announcement.load.running for entry in here.told] == [0, 1, 1]


@pytest.mark.parametrize(
    ("announcement", "why"),
    [
        (make_announcement(draining=True), "draining: it finishes its work and stops"),
        (make_announcement(not_ready="loads its model"), "loads its model"),
        (make_announcement(leaving=True), "stopped"),
    ],
)
def test_the_reason_why_a_node_is_not_used(announcement: Announcement, why: str) -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.nodes.apply_announcement(announcement, "nats")
    assert here.nodes.usable(Role.WORKER) == []
    assert [entry.why_not for entry in here.nodes.entries()] == [why]


def test_a_gone_node_is_eventually_forgotten() -> None:
    here = Hours()
    here.nodes.apply_announcement(make_announcement(), "nats")
    here.nodes.mark_gone(WORKER, "its link died")
    here.pass_by(directory.FORGOTTEN_AFTER.total_seconds() - 1)
    assert here.nodes.find(WORKER) is not None
    here.pass_by(2)
    assert here.nodes.find(WORKER) is None


def test_a_peer_that_announces_endlessly_does_not_fill_the_directory() -> None:
    here = Hours()
    for number in range(directory.MAX_NODES + 10):
        here.nodes.apply_announcement(make_announcement(NodeId(f"U{number}")), "nats")
    assert len(here.nodes.entries()) == directory.MAX_NODES
    here.nodes.apply_announcement(make_announcement(NodeId("U1"), draining=True), "nats")
    assert len(here.nodes.usable(Role.WORKER)) == directory.MAX_NODES - 1


# --- encoding -------------------------------------------------------------------------------------------------------


def test_an_announcement_survives_encoding_even_a_longer_one_of_a_newer_version() -> None:
    announcement = make_announcement(
        models=(ModelOffer(ModelName("smollm2"), 2048, "abc"),), load=WorkerLoad(4, 1, 2, 0.5), labels={"trust": "1"}
    )
    assert directory.decode(directory.encode(announcement)) == announcement
    newer = [*msgspec.msgpack.decode(directory.encode(announcement)), "a field of tomorrow"]
    assert directory.decode(msgspec.msgpack.encode(newer)) == announcement


def test_an_offer_is_read_by_versions_without_its_newest_fields() -> None:
    offer = ModelOffer(
        *(ModelName("gpt-x"), 2048, "abc"),
        provider="acme",
        only_moderates=True,
        rests=True,
        region="eu",
        abilities=("images",),
        is_adapter=True,
        is_upstream=True,
        upstream_model="gpt-x-2026",
        can_suit_agents=True,
        numerics="abc",
        quantization="Q4_K_M",
    )
    announcement = make_announcement(models=(offer,))
    assert directory.decode(directory.encode(announcement)).models == (offer,)
    fields = msgspec.structs.fields(ModelOffer)
    newest = ["provider", "only_moderates", "rests", "region", "unused", "abilities", "is_adapter", "is_upstream"]
    newest += ["upstream_model", "can_suit_agents", "numerics", "batch_busy", "yields", "problem", "quantization"]
    assert [field.name for field in fields[-15:]] == newest, "fields of an array may only be appended"
    older = msgspec.defstruct("Older", [(field.name, field.type) for field in fields[:-14]], array_like=True)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(offer), type=older)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(read), type=ModelOffer) == ModelOffer(
        ModelName("gpt-x"), 2048, "abc", provider="acme"
    )


def test_an_announcement_with_new_fields_is_read_by_versions_without_them() -> None:
    added: dict[str, Any] = {
        "assigned": (ModelName("qwen3"),),
        "refused": (ModelName("gemma3"),),
        "config": directory.ConfigReading("0.4.0", "0.3.0", 7),
        "leave_reason": "its user logged out",
        "models_revision": 3,
        "features": ("webhooks",),
        "over_web": True,
        "notice": "Not shared yet: LM Studio",
    }
    announcement = msgspec.structs.replace(make_announcement(warning="a library is missing"), **added)
    assert directory.decode(directory.encode(announcement)) == announcement
    fields = msgspec.structs.fields(Announcement)
    assert [field.name for field in fields[-len(added) :]] == list(added), "fields of an array may only be appended"
    older = msgspec.defstruct("Older", [(field.name, field.type) for field in fields[: -len(added)]], array_like=True)
    read = msgspec.msgpack.decode(directory.encode(announcement), type=older)
    assert msgspec.structs.astuple(read) == msgspec.structs.astuple(announcement)[: -len(added)]
    assert directory.decode(msgspec.msgpack.encode(read)) == make_announcement(warning="a library is missing")


# --- clocks -----------------------------------------------------------------------------------------------------------


def announce_clocks(here: Hours, *aheads: dict[str, float]) -> dict[NodeId, str]:
    """Apply announcements of nodes whose clocks are ahead of ours by these seconds."""
    for aheads_of in aheads:
        for node, ahead in aheads_of.items():
            made_at = STARTED + timedelta(seconds=here.seconds + ahead)
            here.nodes.apply_announcement(make_announcement(NodeId(node), made_at=made_at), "nats")
        here.seconds += directory.ANNOUNCE_SECONDS
    return directory.find_wrong_clocks(here.nodes.entries(), NodeId("UME"))


def test_a_wrong_clock_is_noticed_and_the_majority_is_right() -> None:
    here = Hours()
    clocks = {"UA": 0.0, "UB": 0.1, "UC": -1.9, "UD": 7200.0}
    assert announce_clocks(here, clocks, clocks) == {}, "two announcements prove nothing"
    assert announce_clocks(here, clocks) == {NodeId("UD"): "its clock is 7,200 s ahead of the mesh's: set it, for example with NTP"}
    assert announce_clocks(here, *[dict.fromkeys("ABCD", 5.0)] * 3)[NodeId("UME")].startswith("its clock is 5 s behind")
    assert len(here.told) == 8, "a time alone is no change"


def test_a_late_announcement_is_no_wrong_clock() -> None:
    here = Hours()
    assert announce_clocks(here, {"UA": 0.0}, {"UA": -4.0}, {"UA": -3.0}) == {}
    assert announce_clocks(here, {"UA": -3.0}) == {NodeId("UA"): "its clock is 3 s behind the mesh's: set it, for example with NTP"}
    assert announce_clocks(here, {"UA": 0.0}) == {}
    here.nodes.mark_gone(NodeId("UA"), "stopped")
    assert announce_clocks(here) == {}


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x91" * 5000, directory.encode(make_announcement(labels={"x": "y" * 20_000}))])
def test_an_invalid_announcement_is_a_protocol_violation(body: bytes) -> None:
    with pytest.raises(errors.ProtocolViolation, match="an announcement"):
        directory.decode(body)


@pytest.mark.parametrize("field", ["started_at", "made_at"])
def test_a_time_without_a_time_zone_is_a_protocol_violation(field: str) -> None:
    """A naive time cannot be compared with the others."""
    naive = msgspec.structs.replace(make_announcement(), **{field: datetime(2026, 1, 1)})  # noqa: DTZ001
    with pytest.raises(errors.ProtocolViolation, match="timezone"):
        directory.decode(directory.encode(naive))


@given(st.binary(max_size=300))
def test_random_bytes_are_a_protocol_violation_or_an_announcement(body: bytes) -> None:
    try:
        assert isinstance(directory.decode(body), Announcement)
    except errors.ProtocolViolation:
        pass


# --- picking --------------------------------------------------------------------------------------------------------


def entries(*running: int) -> list[DirectoryEntry]:
    return [
        DirectoryEntry(
            make_announcement(NodeId(f"U{number}"), load=WorkerLoad(slots=4, running=busy)),
            (PeerRoute("nats", "nats", 0.0),),
            "nats",
            STARTED,
            "",
        )
        for number, busy in enumerate(running)
    ]


def picked(workers: list[DirectoryEntry], rng: random.Random) -> str | None:
    found = directory.pick(workers, rng, directory.expected_wait)
    return None if found is None else found.node


def test_picking_from_no_node_and_from_one() -> None:
    assert directory.pick([], random.Random(0), directory.expected_wait) is None
    (only,) = entries(9)
    assert directory.pick([only], random.Random(0), directory.expected_wait) is only


def test_the_idle_one_of_two_nodes_is_picked() -> None:
    workers = entries(4, 0)
    assert {picked(workers, random.Random(seed)) for seed in range(20)} == {"U1"}


def test_the_busiest_of_many_is_never_picked_and_the_others_share() -> None:
    workers = entries(0, 0, 0, 4)
    rng = random.Random(1)
    counted = Counter(picked(workers, rng) for _ in range(600))
    assert sorted(counted) == ["U0", "U1", "U2"]
    assert min(counted.values()) > 100


def test_calls_sent_since_the_last_announcement_count() -> None:
    (worker,) = entries(1)
    assert directory.expected_wait(worker, in_flight=3) > directory.expected_wait(worker)
    patient = msgspec.structs.replace(worker.announcement, load=WorkerLoad(slots=4, running=1, expected_wait_seconds=9))
    assert directory.expected_wait(DirectoryEntry(patient, (PeerRoute("nats", "nats", 0.0),), "nats", STARTED, "")) > 9
