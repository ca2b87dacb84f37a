"""What is deleted from the store, and what never is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.backup.settings import BackupSettings
from features.backup.stack.agent import pruning
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest, Segment
from tests.features.backup.stack.catalogs import SEGMENT, backup, catalog, moment, passed, segments

DAY = 24
SETTINGS = BackupSettings()


def prune(found: StoreCatalog, now: int, *more: str) -> list[str]:
    return pruning.plan_pruning(found, more, moment(now), SETTINGS)


def kept_of(found: StoreCatalog, now: int) -> list[BackupManifest]:
    return pruning.choose_kept(found, moment(now), SETTINGS)


def left(found: StoreCatalog, now: int) -> StoreCatalog:
    """Return the store after pruning."""
    deleted = set(prune(found, now))
    return catalog(
        [each for each in found.backups if f"base/{each.name}/manifest.json" not in deleted],
        [each for each in found.segments if each.object(SEGMENT) not in deleted],
        found.tests,
    )


@st.composite
def stores(draw: st.DrawFn) -> tuple[StoreCatalog, int]:
    """Draw a store of up to 50 days with a complete log, and the current hour."""
    hours = sorted(draw(st.sets(st.integers(0, 50 * DAY), min_size=1, max_size=25)))
    backups = [backup(hour, hour + draw(st.integers(0, 3))) for hour in hours]
    now = max(hours) + 4 + draw(st.integers(0, 10 * DAY))
    tested = draw(st.sets(st.sampled_from(range(len(backups))), max_size=2))
    return catalog(backups, segments(hours[0], now), passed(*(backups[number] for number in tested))), now


def covers(found: StoreCatalog, hour: int) -> bool:
    """Return whether the state at this hour can be restored."""
    numbers = {segment.number for segment in found.segments}
    return any(each.finished_at <= moment(hour) and numbers >= set(range(each.start_lsn // SEGMENT, hour + 1)) for each in found.backups)


@given(stores())
def test_every_hour_of_the_last_seven_days_can_be_restored_as_before(store: tuple[StoreCatalog, int]) -> None:
    found, now = store
    after = left(found, now)
    window = range(max(0, now - 7 * DAY), now + 1)
    assert [hour for hour in window if covers(after, hour)] == [hour for hour in window if covers(found, hour)]


@given(stores())
def test_every_backup_that_is_left_has_its_log(store: tuple[StoreCatalog, int]) -> None:
    found, now = store
    after = left(found, now)
    numbers = {segment.number for segment in after.segments}
    for each in after.backups:
        assert numbers >= set(range(each.start_lsn // SEGMENT, each.stop_lsn // SEGMENT + 1))
    assert tuple(kept_of(found, now)) == after.backups


@given(stores())
def test_the_newest_and_the_last_verified_stay_and_one_of_each_day(store: tuple[StoreCatalog, int]) -> None:
    found, now = store
    after = left(found, now)
    names = {each.name for each in after.backups}
    assert found.backups[-1].name in names
    assert found.tests is not None
    verified = [each.name for each in found.backups if each.name in found.tests.passed]
    assert names >= set(verified[-1:])
    wanted = {each.started_at.date() for each in found.backups if each.started_at > moment(now - 30 * DAY)}
    assert wanted <= {each.started_at.date() for each in after.backups}


@given(stores())
def test_pruning_again_deletes_nothing_more(store: tuple[StoreCatalog, int]) -> None:
    found, now = store
    assert prune(left(found, now), now) == []


@given(stores(), st.integers(1, 100 * DAY))
def test_a_clock_that_was_set_back_deletes_nothing(store: tuple[StoreCatalog, int], back: int) -> None:
    found, _ = store
    newest = int((found.backups[-1].started_at - moment(0)).total_seconds() // 3600)
    assert prune(found, newest - back, "logs/2020-01-01/auth.log.zst.age") == []


def test_what_goes_of_forty_days() -> None:
    backups = [backup(day * DAY) for day in range(41)]
    found = catalog(backups, segments(0, 40 * DAY + 1), passed(backups[2], backups[3]))
    after = left(found, 40 * DAY + 1)
    days = [each.started_at.timetuple().tm_yday - moment(0).timetuple().tm_yday for each in after.backups]
    assert days == [3, *range(11, 41)], "30 days, and the last verified one"
    assert [segment.number for segment in after.segments] == [
        *(day * DAY for day in (3, *range(11, 33))), *range(33 * DAY, 40 * DAY + 2)
    ], "each backup's own segment, and everything since the one of 7 days ago"  # fmt: skip


def test_a_manifest_goes_before_its_parts_and_its_log() -> None:
    old, new = backup(0), backup(50 * DAY)
    names = prune(catalog([old, new], [*segments(0, 3), *segments(50 * DAY, 50 * DAY)]), 50 * DAY + 10 * DAY)
    parts = [f"base/{old.name}/{part}.tar.zst.age" for part in ("data", "secrets", "files")]
    assert names[:4] == [f"base/{old.name}/manifest.json", *parts]
    assert all(name.startswith("wal/") for name in names[4:])
    assert len(names) == 8


def test_earlier_timelines_stay_until_the_newest_one_covers_the_window() -> None:
    before, after = backup(0), backup(5 * DAY, timeline=2)
    log = [*segments(0, 5 * DAY), *segments(5 * DAY, 20 * DAY, timeline=2)]
    found = catalog([before, after], log)
    assert prune(found, 12 * DAY) == []
    gone = prune(found, 12 * DAY + 1)
    assert gone, "seven days after the first backup of timeline 2"
    assert {name.split("/")[1] for name in gone} == {"00000001"}
    assert Segment(1, 0).object(SEGMENT) not in gone, "the backup of the first timeline is kept for 30 days"


def test_the_recovery_log_and_the_terms_never_go() -> None:
    found = catalog([backup(0), backup(400 * DAY)], [])
    kept = ("log/auth/000000000001-000000000002.zst.age", "site/1.json", "mesh.json", "logs/2026-11-01/../x.log.zst.age")
    assert not set(kept) & set(prune(found, 401 * DAY, *kept))


@pytest.mark.parametrize(("day", "goes"), [("2026-10-31", True), ("2026-11-01", False)])
def test_program_logs_stay_ninety_days(day: str, goes: bool) -> None:
    name = f"logs/{day}/inference-echo.log.zst.age"
    assert (name in prune(catalog([backup(89 * DAY)], segments(89 * DAY, 90 * DAY)), 90 * DAY, name)) is goes


def test_an_empty_store_is_left_alone() -> None:
    assert prune(catalog([]), 0, "logs/2020-01-01/auth.log.zst.age") == []
