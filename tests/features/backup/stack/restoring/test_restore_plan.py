from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest, BackupPart, RestoreRefused, Segment, StoreState
from features.backup.stack.restoring import restore_plan
from features.backup.stack.restoring.restore_plan import LATEST, RestorePlan, RestoreTarget, TimelineEnd
from shared.types import MeshName

SIZE = 16 << 20
MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return MIDNIGHT + timedelta(seconds=seconds)


def backup(number: int, timeline: int = 1) -> BackupManifest:
    """Return a backup in segment ``number`` that starts ``number`` minutes after midnight and takes half a minute."""
    return BackupManifest(
        name=f"backup-{number}", mesh=MeshName("home"), site="here", term=1, system="1", timeline=timeline, segment_size=SIZE,
        start_lsn=number * SIZE + 40, stop_lsn=number * SIZE + 400, started_at=at(number * 60), finished_at=at(number * 60 + 30.5),
        seconds=30.0, postgres=180000, version="0", migrations={},
        parts=(BackupPart(name="data", size=1, sha256="", plain_size=1000),), rows={}, ledger_entries=0, ledger_micro=0,
        audit_heads={}, log_heads={}, secrets_salt="", secrets={}, machine="",
    )  # fmt: skip


def store(segments: list[Segment], *backups: BackupManifest, histories: frozenset[int] = frozenset(), until: float = 3600) -> StoreCatalog:
    state = StoreState(term=1, timeline=1, until=at(until), lsn=0)
    return StoreCatalog(tuple(backups), tuple(sorted(segments)), histories, state)


def plan(
    catalog: StoreCatalog, which: str = LATEST, histories: Mapping[int, tuple[TimelineEnd, ...]] | None = None, **target: object
) -> RestorePlan:
    return restore_plan.plan(catalog, which, replace(RestoreTarget(), **target), histories or {})


def numbers(chosen: RestorePlan) -> list[int]:
    return [segment.number for segment in chosen.segments]


ALL = [Segment(1, number) for number in range(1, 10)]
PARTIAL = Segment(1, 10, is_partial=True)


def test_latest_is_the_newest_backup_and_everything_after_it() -> None:
    chosen = plan(store([*ALL, PARTIAL], backup(1), backup(5)))
    assert (chosen.backup.name, numbers(chosen), chosen.segments[-1], chosen.gap) == ("backup-5", [5, 6, 7, 8, 9, 10], PARTIAL, None)


def test_a_moment_needs_the_newest_backup_that_ended_before_it_and_no_log_behind_the_next_one() -> None:
    catalog = store(ALL, backup(1), backup(5))
    chosen = plan(catalog, at=at(250))
    assert (chosen.backup.name, numbers(chosen)) == ("backup-1", [1, 2, 3, 4, 5])
    # During a backup, the previous backup is used.
    assert plan(catalog, at=at(330)).backup.name == "backup-1"
    assert plan(catalog, at=at(331)).backup.name == "backup-5"


def test_a_named_backup_ends_with_itself_unless_a_moment_is_given() -> None:
    catalog = store(ALL, backup(1), backup(5))
    chosen = plan(catalog, "backup-1")
    assert (numbers(chosen), chosen.target.is_backup_end) == ([1], True)
    assert numbers(plan(catalog, "backup-1", at=at(3000))) == list(range(1, 10))


@pytest.mark.parametrize(
    ("which", "moment", "why"),
    [
        (LATEST, 10, "the first moment that can be restored is 2026-11-25T00:01:31Z"),
        (LATEST, 3700, "the last moment that can be restored is 2026-11-25T01:00:00Z"),
        ("backup-5", 320, "the backup backup-5 can be restored from 2026-11-25T00:05:31Z on"),
        ("backup-9", None, "no backup 'backup-9'"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_the_nearest_moment(which: str, moment: float | None, why: str) -> None:
    with pytest.raises(RestoreRefused, match=why):
        plan(store(ALL, backup(1), backup(5)), which, at=None if moment is None else at(moment))


def test_a_gap_ends_the_plan_and_is_named() -> None:
    without_7 = [segment for segment in ALL if segment.number != 7]
    chosen = plan(store(without_7, backup(5)))
    assert (numbers(chosen), chosen.gap) == ([5, 6], Segment(1, 7))
    assert "2026-11-25T00:06:40Z" in restore_plan.refusal_of_gap(chosen, at(400.9)).message
    # An unfinished segment in the middle is a gap, too.
    assert plan(store([*without_7, Segment(1, 7, is_partial=True)], backup(5))).gap == Segment(1, 7)
    # Segments that the target does not need may be missing.
    assert plan(store(without_7, backup(1), backup(6)), at=at(200)).gap is None


def test_a_backup_without_its_own_log_is_refused() -> None:
    with pytest.raises(RestoreRefused, match=r"wal/00000001/000000010000000000000005\.zst\.age is missing"):
        plan(store([segment for segment in ALL if segment.number != 5], backup(5)))


def test_the_newest_timeline_is_followed_and_what_it_abandoned_is_not() -> None:
    # A restore to the middle of segment 6 has put the cluster on timeline 2.
    history = {2: (TimelineEnd(1, 6 * SIZE + 500),)}
    catalog = store([*ALL, Segment(2, 6), Segment(2, 7)], backup(5), backup(8), histories=frozenset({2}))
    chosen = plan(catalog, histories=history)
    assert (chosen.backup.name, chosen.timeline, chosen.gap) == ("backup-5", 2, None), "the newer backup is of the abandoned part"
    assert chosen.segments == (Segment(1, 5), Segment(2, 6), Segment(2, 7))
    # The abandoned backup can be restored by its name.
    abandoned = plan(catalog, "backup-8", histories=history)
    assert (abandoned.timeline, abandoned.segments) == (1, (Segment(1, 8),))
    # Until the new timeline's first segment is in the store, the old timeline's segment has what came before the switch.
    early = plan(store(ALL, backup(5), histories=frozenset({2})), histories=history)
    assert early.segments == (Segment(1, 5), Segment(1, 6))


def test_a_history_file_is_read() -> None:
    text = "1\t0/3000148\tbefore 2000-01-01 00:00:00+00\n\n2\tA/5000000\tno recovery target specified\n"
    assert restore_plan.parse_history(text) == (TimelineEnd(1, 0x3000148), TimelineEnd(2, (0xA << 32) + 0x5000000))


def test_the_window_has_its_holes() -> None:
    without_7 = [segment for segment in ALL if segment.number != 7]
    found = restore_plan.window(store(without_7, backup(1), backup(3), backup(8)), {})
    assert found is not None
    assert (found.first, found.last) == (backup(1).finished_at, at(3600))
    assert found.holes == (restore_plan.RecoveryHole(backup(3).finished_at, backup(8).finished_at, "000000010000000000000007"),)
    # Old daily backups keep only their own log: by design, nothing between them can be restored.
    found = restore_plan.window(store([Segment(1, 1), *ALL[4:]], backup(1), backup(5)), {})
    assert found is not None
    assert (found.first, found.holes) == (backup(5).finished_at, ())
    assert restore_plan.window(store([]), {}) is None


@given(kept=st.sets(st.integers(1, 12)), partial=st.sets(st.integers(1, 12)), moment=st.one_of(st.none(), st.integers(0, 4000)))
def test_any_subset_of_the_log_gives_a_contiguous_start_or_a_refusal(kept: set[int], partial: set[int], moment: int | None) -> None:
    segments = [*(Segment(1, number) for number in kept), *(Segment(1, number, is_partial=True) for number in partial)]
    try:
        chosen = plan(store(segments, backup(2), backup(6)), at=None if moment is None else at(moment))
    except RestoreRefused:
        return
    first = chosen.backup.start_lsn // SIZE
    assert numbers(chosen) == list(range(first, first + len(chosen.segments)))
    assert not any(segment.is_partial for segment in chosen.segments[:-1])
    last = chosen.segments[-1]
    behind = {number for number in kept | partial if number > last.number}
    # No segment is left out silently.
    assert chosen.gap is not None or not behind or chosen.target.at is not None
