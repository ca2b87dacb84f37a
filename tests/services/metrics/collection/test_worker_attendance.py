"""Which workers are missing: those that disappeared, also across a restart, but not those that left on purpose."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.metrics.collection import worker_attendance
from services.metrics.collection.worker_attendance import MEETING, AttendedWorker, WorkerAttendance
from shared.protocol.directory import FORGOTTEN_AFTER, GONE_AFTER_SECONDS, Announcement, Directory
from shared.types import NodeId, Role

STARTED = datetime(2026, 1, 2, tzinfo=UTC)
ANN, BOB = NodeId("UANN"), NodeId("UBOB")


class RunningService:
    """A metrics service that sees workers come and go. Like a new process, ``restart`` keeps only what was stored."""

    def __init__(self) -> None:
        self.now = STARTED
        self.revoked: set[NodeId] = set()
        self.restart(())

    def restart(self, kept: Iterable[AttendedWorker]) -> None:
        self.directory = Directory(self._seconds, lambda: self.now)
        self.attendance = WorkerAttendance()
        self.attendance.recall(list(kept), self.now)

    def _seconds(self) -> float:
        return self.now.timestamp()

    def announce(self, *nodes: NodeId, **changes: object) -> None:
        for node in nodes:
            announcement = msgspec.structs.replace(Announcement(Role.WORKER, node, "0.1.0", STARTED), **changes)
            self.directory.apply_announcement(announcement, "punched", "swarm")
        self.look()

    def pass_by(self, length: timedelta = timedelta(seconds=GONE_AFTER_SECONDS + 1)) -> None:
        self.now += length
        self.look()

    def look(self) -> None:
        self.directory.tick()
        self.attendance.look(self.directory.entries(), self.revoked.__contains__, self.now)

    @property
    def kept(self) -> list[AttendedWorker]:
        return list(self.attendance.members().values())

    @property
    def missed(self) -> set[NodeId]:
        return set(self.attendance.missed())


@pytest.fixture
def running_service() -> RunningService:
    return RunningService()


def test_worker_that_disappears_is_missed_until_it_is_back(running_service: RunningService) -> None:
    running_service.announce(ANN, BOB)
    assert running_service.missed == set()
    running_service.pass_by()
    running_service.announce(BOB)
    assert running_service.missed == {ANN}
    (entry,) = running_service.attendance.missed().values()
    assert (entry.alive, entry.path, entry.since) == (False, "punched", running_service.now)
    assert "silent for" in entry.why_gone
    running_service.announce(ANN)
    assert running_service.missed == set()


def test_worker_that_leaves_on_purpose_is_not_missed(running_service: RunningService) -> None:
    running_service.announce(ANN, BOB)
    running_service.announce(ANN, draining=True)
    running_service.announce(ANN, draining=True, leaving=True)
    running_service.revoked.add(BOB)
    running_service.pass_by()
    running_service.pass_by(2 * MEETING)
    assert (running_service.missed, running_service.kept) == (set(), [])


def test_worker_that_was_never_admitted_is_not_missed(running_service: RunningService) -> None:
    running_service.directory.add_refused(ANN, Role.WORKER, "0.1.0", "no certificate")
    running_service.pass_by(2 * MEETING)
    assert running_service.kept == []


def test_only_workers_are_missed(running_service: RunningService) -> None:
    running_service.announce(ANN, role=Role.WEB)
    running_service.pass_by()
    assert running_service.kept == []


def test_worker_missed_before_a_restart_keeps_its_time(running_service: RunningService) -> None:
    running_service.announce(ANN)
    running_service.pass_by()
    (before,) = running_service.attendance.missed().values()
    running_service.now += timedelta(minutes=10)
    running_service.restart(running_service.kept)
    # Its key is still announced where nodes look for each other, but the worker can't be reached.
    running_service.directory.add_refused(ANN, Role.WORKER, "", "it does not answer")
    running_service.look()
    (after,) = running_service.attendance.missed().values()
    assert (after.node, after.since, after.path, after.why_gone) == (before.node, before.since, before.path, before.why_gone)
    running_service.announce(ANN)
    assert running_service.missed == set()


def test_worker_that_left_during_a_restart_is_missed_after_the_grace_period(running_service: RunningService) -> None:
    running_service.announce(ANN, BOB)
    running_service.restart(running_service.kept)
    running_service.look()
    running_service.announce(BOB)
    running_service.pass_by(MEETING - timedelta(seconds=1))
    running_service.announce(BOB)
    assert running_service.missed == set()
    running_service.pass_by(timedelta(seconds=1))
    assert running_service.missed == {ANN}
    assert "has not come back" in running_service.attendance.missed()[ANN].why_gone


def test_facts_since_the_start_override_stored_ones(running_service: RunningService) -> None:
    running_service.announce(ANN)
    running_service.pass_by()
    kept = running_service.kept
    running_service.restart(())
    running_service.announce(ANN)
    running_service.attendance.recall(kept, running_service.now)
    assert running_service.missed == set()


def test_worker_revoked_after_a_restart_is_no_longer_missed(running_service: RunningService) -> None:
    running_service.announce(ANN)
    running_service.pass_by()
    running_service.restart(running_service.kept)
    running_service.look()
    assert running_service.missed == {ANN}
    running_service.revoked.add(ANN)
    running_service.look()
    assert running_service.kept == []


def test_missing_worker_is_forgotten_after_an_hour(running_service: RunningService) -> None:
    running_service.announce(ANN)
    running_service.pass_by()
    running_service.restart(running_service.kept)
    running_service.pass_by(FORGOTTEN_AFTER)
    assert running_service.missed == {ANN}
    running_service.pass_by(timedelta(seconds=1))
    assert running_service.kept == []


def test_stored_time_in_the_future_is_clamped(running_service: RunningService) -> None:
    running_service.restart([AttendedWorker(ANN, "nats", running_service.now + timedelta(days=365))])
    running_service.pass_by(FORGOTTEN_AFTER + timedelta(seconds=1))
    assert running_service.kept == []


def test_as_many_workers_fit_as_in_the_directory(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_attendance, "MAX_NODES", 3)
    running_service.announce(*(NodeId(f"U{number}") for number in range(10)))
    assert len(running_service.kept) == 3
    running_service.restart([AttendedWorker(NodeId(f"U{number}"), "nats") for number in range(10)])
    assert len(running_service.kept) == 3


def test_reason_from_a_peer_can_be_stored(running_service: RunningService) -> None:
    running_service.announce(ANN)
    running_service.directory.mark_gone(ANN, "bye\0\n" + "x" * 5000)
    running_service.look()
    (member,) = running_service.kept
    assert member.why == "bye  " + "x" * 195
