"""A standby's position, and which log it can follow."""

import msgspec
import pytest

from stack.recovery.catalog import StoreCatalog
from stack.recovery.layout import BackupPart, RestoreRefused, Segment
from stack.recovery.restoring.restore_plan import TimelineEnd
from stack.recovery.takeover import standby_plan
from stack.recovery.takeover.standby_plan import ControlFile, LogPosition
from tests.stack.recovery.catalogs import SEGMENT, backup, segments

BACKUP = msgspec.structs.replace(backup(1), parts=(BackupPart(name="data", size=1, sha256="", plain_size=1),))


def found(*there: Segment, histories: frozenset[int] = frozenset()) -> StoreCatalog:
    return StoreCatalog((BACKUP,), tuple(sorted(there)), histories, None)


def planned(position: LogPosition, *there: Segment, fork: int | None = None) -> list[Segment]:
    histories = {} if fork is None else {2: (TimelineEnd(1, fork),)}
    return list(standby_plan.plan(found(*there, histories=frozenset(histories)), position, histories).segments)


def test_it_fetches_from_the_segment_where_it_is_to_the_newest_unfinished_one() -> None:
    partial = Segment(1, 9, is_partial=True)
    assert planned(LogPosition(1, 7 * SEGMENT + 5), *segments(1, 8), partial) == [*segments(7, 8), partial]


def test_what_was_pruned_before_its_position_is_not_missed() -> None:
    assert planned(LogPosition(1, 7 * SEGMENT + 5), *segments(7, 8)) == segments(7, 8)


def test_at_the_end_of_a_segment_it_waits_for_the_next_one() -> None:
    assert planned(LogPosition(1, 8 * SEGMENT), *segments(1, 7)) == segments(7, 7)
    assert planned(LogPosition(1, 8 * SEGMENT), *segments(1, 8)) == segments(7, 8)


def test_a_missing_segment_before_later_ones_is_a_gap() -> None:
    with pytest.raises(RestoreRefused, match=r"0000000100000000\w+8.zst.age is missing"):
        planned(LogPosition(1, 7 * SEGMENT + 5), *segments(1, 7), *segments(9, 9))
    with pytest.raises(RestoreRefused, match="is missing"):
        planned(LogPosition(1, 7 * SEGMENT + 5), *segments(9, 9))


def test_a_new_timeline_is_followed_unless_it_began_before_its_position() -> None:
    fork = 7 * SEGMENT + 900
    new = segments(7, 8, timeline=2)
    assert planned(LogPosition(1, fork), *segments(1, 7), *new, fork=fork) == new
    with pytest.raises(RestoreRefused, match="no backup belongs to the newest timeline"):
        planned(LogPosition(1, fork + 1), *segments(1, 7), *new, fork=fork)


def test_a_store_without_backups_is_refused() -> None:
    with pytest.raises(RestoreRefused, match="no backup"):
        standby_plan.plan(StoreCatalog((), (), frozenset(), None), LogPosition(1, 5), {})


@pytest.mark.parametrize(
    ("state", "is_in_recovery"),
    [("in archive recovery", True), ("shut down in recovery", True), ("shut down", False), ("in production", False)],
)
def test_the_control_file_says_where_the_next_start_reads(state: str, is_in_recovery: bool) -> None:
    text = (
        f"Database cluster state:               {state}\n"
        "Latest checkpoint location:           0/3231418\n"
        "Latest checkpoint's REDO location:    1/32313C0\n"
        "Latest checkpoint's TimeLineID:       3\n"
        "Minimum recovery ending location:     0/0\n"
    )
    assert standby_plan.parse_control(text) == ControlFile(LogPosition(3, (1 << 32) + 0x32313C0), is_in_recovery)


def test_records_of_standbys_are_no_terms() -> None:
    name = standby_plan.record_name("us-central1")
    assert standby_plan.is_record(name)
    assert not any(standby_plan.is_record(other) for other in ("site/1.json", "site/1.lease", f"{name}.old"))
