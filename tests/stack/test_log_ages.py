from datetime import date

import pytest

from stack import log_ages

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
    assert log_ages.day_of(line) == day


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
    assert log_ages.old_bytes(lines, OLDEST) == old
