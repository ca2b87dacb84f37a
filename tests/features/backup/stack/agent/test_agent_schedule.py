"""When a backup, a restore test and a copy of the program logs are due."""

from datetime import UTC, date, datetime, time, timedelta

import msgspec
import pytest

from features.backup.settings import BackupSettings
from features.backup.stack.agent import agent_schedule
from features.backup.stack.agent.source_database import SourcePosition
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest
from tests.features.backup.stack.catalogs import SEGMENT, backup, catalog, moment, passed, segments

DAY = 24
SETTINGS = BackupSettings(backup_at="02:30", backup_base_after_wal="1600MB")
NONE, GAP, WAL, DAILY = "there is none", "write-ahead log is missing", "of the write-ahead log", "of the time of day"


def at(hour: int, *, lsn: int | None = None, timeline: int = 1) -> SourcePosition:
    return SourcePosition(moment(hour), (hour if lsn is None else lsn) * SEGMENT, timeline)


@pytest.mark.parametrize(
    ("found", "now", "why"),
    [
        pytest.param(catalog([]), at(0), NONE, id="an empty store"),
        pytest.param(catalog([backup(0, term=2)]), at(1), NONE, id="another term"),
        pytest.param(catalog([backup(0)]), at(1, timeline=2), NONE, id="another timeline, as after a restore"),
        pytest.param(catalog([backup(3)], segments(3, 4)), at(4), None, id="just made"),
        pytest.param(catalog([backup(3)]), at(4), None, id="its log is not there yet"),
        pytest.param(catalog([backup(3)], segments(3, 26)), at(26), None, id="before the time of day"),
        pytest.param(catalog([backup(3)], segments(3, 27)), at(27), DAILY, id="at the time of day"),
        pytest.param(catalog([backup(3), backup(27)], segments(3, 28)), at(28), None, id="made today already"),
        pytest.param(catalog([backup(3)], segments(3, 4)), at(4, lsn=104), WAL, id="much log"),
        pytest.param(catalog([backup(3)], segments(3, 4)), at(4, lsn=102), None, id="less than much log"),
        pytest.param(catalog([backup(3)], [*segments(3, 4), *segments(6, 7)]), at(7), GAP, id="a segment is missing"),
        pytest.param(catalog([backup(3)], segments(4, 7)), at(7), GAP, id="its first segment is missing"),
        pytest.param(catalog([backup(0), backup(3)], [*segments(0, 1), *segments(3, 7)]), at(7), None, id="a gap before the newest backup"),
        pytest.param(catalog([backup(3)], [*segments(3, 4), *segments(6, 7, timeline=2)]), at(7), None, id="a gap in another timeline"),
        pytest.param(catalog([backup(3), backup(27)], segments(3, 28)), at(4, lsn=28), None, id="the clock was set back a day"),
        pytest.param(catalog([backup(3), backup(27)], segments(3, 28)), at(4, lsn=128), WAL, id="and much log comes"),
        pytest.param(catalog([backup(3), backup(900 * DAY)], []), at(DAY + 3), DAILY, id="the clock was ahead once"),
        pytest.param(catalog([backup(3), backup(27), backup(900 * DAY)], []), at(DAY + 4), None, id="and is right again"),
        pytest.param(catalog([backup(900 * DAY)], []), at(4), DAILY, id="all backups are of a clock ahead"),
    ],
)
def test_why_a_backup_is_due(found: StoreCatalog, now: SourcePosition, why: str | None) -> None:
    reason = agent_schedule.why_backup(found, 1, now, SETTINGS)
    assert (reason is None) if why is None else (reason or "").startswith(why)


def test_a_gap_after_a_backup_of_a_clock_ahead_is_closed_by_the_next_backup() -> None:
    """The newest backup has the highest position, not the latest name."""
    ahead = backup(900 * DAY)
    positions = [(ahead, 2), (backup(5), 8)]
    backups = [_at_position(each, segment) for each, segment in positions]
    log = [*segments(2, 3), *segments(6, 9)]
    assert (
        agent_schedule.why_backup(catalog(backups[:1], log), 1, at(5, lsn=9), SETTINGS) == "write-ahead log is missing since the last one"
    )
    assert agent_schedule.why_backup(catalog(backups, log), 1, at(5, lsn=9), SETTINGS) is None


def _at_position(each: BackupManifest, segment: int) -> BackupManifest:
    return msgspec.structs.replace(each, start_lsn=segment * SEGMENT, stop_lsn=segment * SEGMENT)


@pytest.mark.parametrize(
    ("now", "due"),
    [
        (datetime(2026, 11, 5, 2, 29, 59, tzinfo=UTC), datetime(2026, 11, 4, 2, 30, tzinfo=UTC)),
        (datetime(2026, 11, 5, 2, 30, tzinfo=UTC), datetime(2026, 11, 5, 2, 30, tzinfo=UTC)),
        (datetime.fromisoformat("2026-11-05T03:00:00+02:00"), datetime(2026, 11, 4, 2, 30, tzinfo=UTC)),
    ],
)
def test_the_time_of_day_is_utc(now: datetime, due: datetime) -> None:
    assert agent_schedule.last_daily(now, time(2, 30)) == due


@pytest.mark.parametrize(
    ("found", "hour", "due"),
    [
        pytest.param(catalog([]), 5, False, id="no backup"),
        pytest.param(catalog([backup(0)]), 0, False, id="a new backup"),
        pytest.param(catalog([backup(0)]), 2, True, id="an hour later"),
        pytest.param(catalog([backup(0)], tests=passed(at=moment(0))), 7 * DAY - 1, False, id="passed"),
        pytest.param(catalog([backup(0)], tests=passed(at=moment(0))), 7 * DAY, True, id="a week later"),
        pytest.param(catalog([backup(0)], tests=passed(at=moment(0), ok=False)), DAY - 1, False, id="failed"),
        pytest.param(catalog([backup(0)], tests=passed(at=moment(0), ok=False)), DAY, True, id="a day after it failed"),
        pytest.param(catalog([backup(0)], tests=passed(at=moment(9000))), 2, True, id="tested by a clock ahead"),
        pytest.param(catalog([backup(10)], tests=passed(at=moment(11))), 3, True, id="the clock was set back behind everything"),
    ],
)
def test_when_a_restore_test_is_due(found: StoreCatalog, hour: int, due: bool) -> None:
    assert agent_schedule.is_test_due(found, moment(hour) + timedelta(minutes=1)) is due


def test_logs_are_copied_when_their_day_is_over() -> None:
    assert agent_schedule.day_to_copy(datetime.fromisoformat("2026-11-06T01:00:00+02:00")) == date(2026, 11, 4)
