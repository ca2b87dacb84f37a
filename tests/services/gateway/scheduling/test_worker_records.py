"""Whether a worker may still be the same process, judged by what the gateway received from its node, and when."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.gateway.scheduling.worker_records import TWIN_SECONDS, WorkerStats
from shared.protocol.directory import Announcement
from shared.types import Role
from tests.services.gateway.fakes import FakeDirectory, node_id

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = FIRST + timedelta(seconds=30)
NODE = node_id(1)


@pytest.mark.parametrize(
    ("heard", "at", "there"),
    [
        pytest.param([(0, FIRST)], 1.0, True, id="alive"),
        pytest.param([(0, FIRST), (1, None)], 1.5, False, id="gone"),
        pytest.param([(0, FIRST), (1, None), (2, SECOND)], 2.0, False, id="gone and restarted"),
        pytest.param([(0, FIRST), (2, SECOND)], 3.0, True, id="another process announces itself, maybe a second one with the same key"),
        pytest.param([(0, FIRST), (2, SECOND)], 2.0 + TWIN_SECONDS, False, id="only the other process announces itself"),
        pytest.param([(0, FIRST), (1, SECOND), (2, FIRST), (3, SECOND)], 5.0, True, id="both announce themselves in turn"),
    ],
)
def test_a_process_with_a_duplicate_is_not_taken_for_gone(heard: list[tuple[float, datetime | None]], at: float, there: bool) -> None:
    known, directory = WorkerStats(), FakeDirectory()
    directory.worker(1, "m")
    (worker,) = directory.usable(Role.WORKER)
    for clock, started_at in heard:
        if started_at is None:
            directory.mark_gone(NODE, "its link ended")
        else:
            directory.apply_announcement(_restarted(worker.announcement, started_at), "nats")
        (entry,) = directory.entries(Role.WORKER)
        known.apply_change(entry, clock, FIRST)
    assert known.may_be_running(worker, at) is there


def _restarted(announcement: Announcement, started_at: datetime) -> Announcement:
    return msgspec.structs.replace(announcement, started_at=started_at)
