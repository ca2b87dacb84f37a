import os
from pathlib import Path

import pytest

from services.gateway.billing.journal import Journal, decode
from tests.services.gateway.billing.test_usage_recorder import row


def test_appended_rows_are_read_by_the_next_process(tmp_path: Path) -> None:
    rows = [row() for _ in range(5)]
    journal = Journal(tmp_path / "rows")
    assert journal.read() == []
    journal.append(rows[:2])
    journal.append(rows[2:])
    assert Journal(tmp_path / "rows").read() == rows
    assert (tmp_path / "rows").stat().st_mode & 0o777 == 0o600
    journal.clear()
    assert Journal(tmp_path / "rows").read() == []


def test_a_disk_that_takes_no_file_is_found_before_a_row_needs_it(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    Journal(folder / "rows").probe()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    with pytest.raises(OSError, match="No such file"):
        Journal(folder / "rows").probe()


def test_a_torn_write_loses_one_record_and_no_later_one(tmp_path: Path) -> None:
    rows = [row() for _ in range(3)]
    path = tmp_path / "rows"
    Journal(path).append(rows)
    body = path.read_bytes()
    second = len(body) - len(body) // 3
    for end in range(second, len(body)):
        path.write_bytes(body[:end])
        journal = Journal(path)
        assert journal.read() == rows[:2]
        journal.append([rows[2]])
        assert Journal(path).read() == rows


def test_a_corrupted_record_is_ignored(tmp_path: Path) -> None:
    rows = [row() for _ in range(2)]
    path = tmp_path / "rows"
    Journal(path).append(rows)
    body = path.read_bytes()
    for at in range(len(body)):
        changed = bytes([*body[:at], body[at] ^ 1, *body[at + 1 :]])
        decoded, whole = decode(changed)
        assert decoded == rows[: len(decoded)]
        assert len(decoded) < 2
        assert whole <= at
    assert decode(os.urandom(1000))[0] == []
