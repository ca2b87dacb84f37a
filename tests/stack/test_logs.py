import os
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from stack import logs

TODAY = date(2026, 11, 21)


def test_short_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("one\n")
    assert not logs.rotate(file, max_bytes=4)
    assert file.read_text() == "one\n"


def test_long_file_is_rotated_and_its_writer_continues(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with file.open("a") as writer:
        writer.write("x" * 50 + "\nlast\n")
        writer.flush()
        assert logs.rotate(file, max_bytes=20)
        writer.write("next\n")
    assert file.read_text() == "next\n"
    assert (tmp_path / "a.log.1").read_text() == "x" * 14 + "\nlast\n"


def test_tail_returns_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("".join(f"line {number} {'x' * 100}\n" for number in range(10_000)))
    assert [line.split()[1] for line in logs.tail(file, 3)] == ["9997", "9998", "9999"]
    assert logs.tail(tmp_path / "none.log", 3) == []


def test_tail_can_start_at_an_earlier_end(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("one\ntwo\n")
    start = logs.ends(tmp_path)["a"]
    assert logs.tail(file, 3, start) == []
    with file.open("a") as writer:
        writer.write("three\n")
    assert logs.tail(file, 3, start) == ["three"]
    file.write_text("new\n")  # rotated
    assert logs.tail(file, 3, start) == ["new"]


def test_follow_continues_after_a_rotation(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("zero\none\n")
    lines = logs.follow({"a": file}, 1)
    assert next(lines).text == "one"
    with file.open("a") as writer:
        writer.write("two\nhal")
        writer.flush()
        assert next(lines).text == "two"
        writer.write("f\n")
        writer.flush()
        assert next(lines).text == "half"
    logs.rotate(file, max_bytes=0)
    file.write_text("new\n")
    assert next(lines).text == "new"


def dated(*days: str) -> str:
    return "".join(f'{{"ts": "{day}T04:56:56.507Z", "event": "ready"}}\n' for day in days)


def test_expired_lines_of_a_quiet_log_are_removed(tmp_path: Path) -> None:
    file, aside = tmp_path / "a.log", tmp_path / "a.log.1"
    with file.open("a") as writer:
        writer.write(dated("2025-03-01", "2026-08-22", "2026-08-23", "2026-11-20"))
        writer.flush()
        aside.write_text(dated("2024-01-01", "2025-02-28"))
        assert logs.forget(file, TODAY, keep_days=90)
        writer.write(dated("2026-11-21"))
    assert file.read_text() == dated("2026-11-21")
    assert aside.read_text() == dated("2026-08-23", "2026-11-20")
    assert aside.stat().st_mode & 0o077 == 0


def test_recent_log_is_left_alone(tmp_path: Path) -> None:
    file, aside = tmp_path / "a.log", tmp_path / "a.log.1"
    file.write_text(dated("2026-09-01"))
    aside.write_text(dated("2026-08-24"))
    assert not logs.forget(file, TODAY, keep_days=90)
    assert (file.read_text(), aside.read_text()) == (dated("2026-09-01"), dated("2026-08-24"))


def test_rotated_file_loses_old_lines_and_is_deleted_with_the_last(tmp_path: Path) -> None:
    file, aside = tmp_path / "a.log", tmp_path / "a.log.1"
    file.write_text(dated("2026-11-20"))
    aside.write_text(dated("2026-08-20", "2026-08-30"))
    assert logs.forget(file, TODAY, keep_days=90)
    assert (file.read_text(), aside.read_text()) == (dated("2026-11-20"), dated("2026-08-30"))
    assert logs.forget(file, date(2026, 11, 29), keep_days=90)
    assert not aside.exists()


def test_log_without_dates_is_deleted_after_a_time_without_writes(tmp_path: Path) -> None:
    file = tmp_path / "dht.log"
    file.write_text('{"nodes": []}\n')
    last = datetime(2026, 8, 22, tzinfo=UTC).timestamp()
    os.utime(file, (last, last))
    assert not logs.forget(file, date(2026, 11, 20), keep_days=90)
    assert logs.forget(file, TODAY, keep_days=90)
    assert file.read_text() == ""
    assert not (tmp_path / "dht.log.1").exists()
    assert not logs.forget(tmp_path / "none.log", TODAY, keep_days=90)


OLDEST = date(2026, 8, 23)
YOUNG = b"2026-08-23 04:56:54,588 INFO nats: ready\n"
OLD = b"2026-08-22 04:56:54,588 INFO nats: ready\n"
UNDATED = b"  File somewhere\n"


@pytest.mark.parametrize(
    ("line", "day"),
    [
        (b'{"ts": "2026-11-21T04:56:56.507Z", "level": "info"}', date(2026, 11, 21)),
        (b"[25949] 2026/11/21 04:56:54.605861 [INF] Starting nats-server", date(2026, 11, 21)),
        (b"2026-11-21 04:56:54.563 UTC [25945] LOG:  starting", date(2026, 11, 21)),
        (b"2026-11-21 04:56:54,588 INFO postgres: started", date(2026, 11, 21)),
        (b"25947:M 01 Dec 2026 04:56:54.555 * oO0OoO0OoO0Oo", date(2026, 12, 1)),
        (b"2026-13-41 is no day", None),
        (b"31 Feb 2026 is none", None),
        (b"2026-11/21 neither", None),
        (b'{"event": "' + b"x" * 80 + b'2020-01-01"}', None),
        (b"\xff\x00\n", None),
        (b"", None),
    ],
)
def test_date_formats_of_all_programs(line: bytes, day: date | None) -> None:
    assert logs.day_of(line) == day


@pytest.mark.parametrize(
    ("lines", "old"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([UNDATED], None, id="no day at all"),
        pytest.param([YOUNG, OLD], 0, id="what comes after a young line is none too old"),
        pytest.param([UNDATED, YOUNG], 0, id="the rest of something young"),
        pytest.param([OLD, YOUNG, YOUNG], len(OLD), id="the old beginning"),
        pytest.param([OLD, UNDATED, YOUNG], len(OLD + UNDATED), id="a traceback goes with its line"),
        pytest.param([UNDATED, OLD], len(UNDATED + OLD), id="before something old, it is older still"),
        pytest.param([OLD, OLD, UNDATED], len(OLD + OLD + UNDATED), id="all of it"),
    ],
)
def test_old_lines_are_at_the_start(lines: list[bytes], old: int | None) -> None:
    assert logs.old_bytes(lines, OLDEST) == old


def test_the_lines_of_one_day_come_from_both_files_with_those_that_show_no_day(tmp_path: Path) -> None:
    path = tmp_path / "auth.log"
    path.write_bytes(b"2026-11-02 a\n  traceback\n2026-11-03 b\n")
    path.with_suffix(".log.1").write_bytes(b"undated\n2026-11-01 c\n2026-11-02 d\n")
    assert logs.read_day(path, date(2026, 11, 2)) == b"2026-11-02 d\n2026-11-02 a\n  traceback\n"
    assert logs.read_day(path, date(2026, 11, 4)) == b""
    assert logs.read_day(tmp_path / "none.log", date(2026, 11, 2)) == b""
