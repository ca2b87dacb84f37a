"""The recovery logs and the anchors in the store, while services and the store fail and recover."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from features.backup.stack import layout
from features.backup.stack.agent import recovery_log_copy
from features.backup.stack.agent.recovery_log_copy import FileCopy, RecoveryLogCopy
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import LogPart
from shared import errors
from shared.api.recovery import FollowRecoveryLog, RecoveryLines, follow_auth_log
from shared.timing.backoff import Backoff
from tests.features.backup.stack.places import brittle, make_place, open_object


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_log_copy, "_BACKOFF", Backoff(0.005, 0.01))


@pytest.fixture
def place(tmp_path: Path) -> BackupPlace:
    return make_place(tmp_path)


class LogService:
    """A service with a log of numbered lines. It streams the lines after a given number."""

    def __init__(self) -> None:
        self.lines = 0
        self.is_away = False
        self.asked: list[int] = []
        self._changed = asyncio.Event()

    def append(self, count: int = 1) -> None:
        self.lines += count
        self._changed.set()

    @contextlib.asynccontextmanager
    async def stream(self, _method: object, request: FollowRecoveryLog, **_: object) -> AsyncIterator[AsyncIterator[RecoveryLines]]:
        if self.is_away:
            raise errors.NotReachable("no auth is available")
        self.asked.append(request.after)
        yield self._parts(request.after)

    async def _parts(self, after: int) -> AsyncIterator[RecoveryLines]:
        while True:
            self._changed.clear()
            if self.is_away:
                raise errors.LinkLost("the link was lost")
            if self.lines > after:
                first, after = after + 1, self.lines
                yield RecoveryLines(first, after, b"".join(b"%d\n" % number for number in range(first, after + 1)))
            else:
                await self._changed.wait()

    def leave(self) -> None:
        self.is_away = True
        self._changed.set()


@contextlib.asynccontextmanager
async def copying(
    place: BackupPlace, service: Any, clock: Callable[[], float] = lambda: 0.0, *, term: int = 1
) -> AsyncIterator[RecoveryLogCopy]:
    copy = RecoveryLogCopy(place, follow_auth_log, term, clock)
    task = asyncio.create_task(copy.run(service))
    try:
        yield copy
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def lines_of(place: BackupPlace, service: str = "auth") -> list[bytes]:
    """Return all lines in the store, in the order of their objects."""
    names = sorted([found.name async for found in place.store.list(f"log/{service}/")])
    return [line for name in names for line in open_object(place, name, await place.store.get(name)).splitlines()]


async def until_stored(place: BackupPlace, last: int) -> None:
    async with asyncio.timeout(5):
        while (await recovery_log_copy.find_end(place, "auth", 1))[0].last < last:  # noqa: ASYNC110 - the store sets no event
            await asyncio.sleep(0.005)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(1, count + 1)]


async def test_lines_are_stored_under_their_numbers_and_a_restarted_agent_continues(place: BackupPlace) -> None:
    service = LogService()
    service.append(3)
    async with copying(place, service):
        await until_stored(place, 3)
        service.append()
        await until_stored(place, 4)
    service.append(2)
    async with copying(place, service):
        await until_stored(place, 6)
    assert service.asked == [0, 4]
    assert brittle(place).written == [LogPart("auth", first, last).object for first, last in ((1, 3), (4, 4), (5, 6))]
    assert await lines_of(place) == numbered(6)


async def test_a_store_that_is_away_loses_no_line_and_the_delay_is_known(place: BackupPlace) -> None:
    service, now = LogService(), 100.0
    async with copying(place, service, lambda: now) as copy:
        service.append()
        await until_stored(place, 1)
        assert copy.behind_seconds == 0
        brittle(place).is_away = True
        service.append()
        await _until(lambda: len(service.asked) == 1 and copy._behind_since is not None)
        now = 107.0
        assert copy.behind_seconds == 7
        brittle(place).is_away = False
        await until_stored(place, 2)
        await _until(lambda: copy.behind_seconds == 0)
    assert await lines_of(place) == numbered(2)


async def test_a_service_that_is_away_counts_as_a_delay(place: BackupPlace) -> None:
    service, now = LogService(), 100.0
    async with copying(place, service, lambda: now) as copy:
        service.append()
        await until_stored(place, 1)
        service.leave()
        await _until(lambda: copy._behind_since is not None)
        now = 103.0
        assert copy.behind_seconds == 3
        service.is_away = False
        service.append()
        await until_stored(place, 2)


async def test_small_objects_are_joined_and_a_missing_line_keeps_them_apart(place: BackupPlace) -> None:
    for first, last in ((1, 1), (2, 3), (4, 4), (6, 6), (7, 9)):
        lines = b"".join(b"%d\n" % number for number in range(first, last + 1))
        await recovery_log_copy.write(place, LogPart("auth", first, last), lines)
    await recovery_log_copy.join(place, "auth")
    assert [part for part, _ in await recovery_log_copy._list(place, "auth")] == [LogPart("auth", 1, 4), LogPart("auth", 6, 9)]
    assert await lines_of(place) == [b"1", b"2", b"3", b"4", b"6", b"7", b"8", b"9"]


async def test_lines_that_are_missing_in_the_store_are_stored_again(place: BackupPlace, tmp_path: Path) -> None:
    service, file = LogService(), tmp_path / "audit_anchors.jsonl"
    file.write_bytes(b"1\n2\n3\n")
    anchors = FileCopy(place, layout.ANCHORS, file, 1)
    await anchors.copy()
    await recovery_log_copy.write(place, LogPart("anchors", 1, 1), b"1\n")
    await recovery_log_copy.write(place, LogPart("anchors", 3, 3), b"3\n")
    await place.store.delete([LogPart("anchors", 1, 3).object])
    append(file, b"4\n")
    await anchors.copy()
    assert brittle(place).written[-1] == LogPart("anchors", 2, 4).object
    await recovery_log_copy.write(place, LogPart("auth", 2, 2), b"2\n")
    service.append(3)
    async with copying(place, service):
        await until_stored(place, 3)
    assert service.asked == [0]


async def test_behind_a_cut_objects_have_the_term_and_those_of_two_terms_are_not_joined(place: BackupPlace, tmp_path: Path) -> None:
    parts = [LogPart("anchors", 1, 2), LogPart("anchors", 3, 2, 2), LogPart("anchors", 4, 4), LogPart("anchors", 5, 5)]
    for part in parts:
        await recovery_log_copy.write(place, part, b"".join(b"%d\n" % each for each in range(part.first, part.last + 1)))
    file = tmp_path / "audit_anchors.jsonl"
    anchors = FileCopy(place, layout.ANCHORS, file, 2)
    file.write_bytes(b"1\n2\n")
    for line in (b"new 3\n", b"new 4\n"):
        append(file, line)
        await anchors.copy()
    await recovery_log_copy.join(place, "anchors")
    stored = [part for part, _ in await recovery_log_copy._list(place, "anchors")]
    assert stored == [LogPart("anchors", 1, 2), LogPart("anchors", 4, 5), LogPart("anchors", 3, 4, 2), LogPart("anchors", 3, 2, 2)]
    assert await recovery_log_copy.find_end(place, "anchors", 3) == (LogPart("anchors", 3, 4, 2), 3)


async def test_large_objects_stay_as_they_are(place: BackupPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        await recovery_log_copy.write(place, LogPart("auth", number, number), b"%d\n" % number)
    size = (await recovery_log_copy._list(place, "auth"))[0][1].size
    monkeypatch.setattr(recovery_log_copy, "_JOINED_BYTES", 2 * size + size // 2)
    await recovery_log_copy.join(place, "auth")
    assert [part.last for part, _ in await recovery_log_copy._list(place, "auth")] == [2, 3]


async def test_an_interrupted_joining_is_completed(place: BackupPlace) -> None:
    """The agent was killed after it had written the joined object, and before it deleted the small ones."""
    for first, last in ((1, 1), (2, 2), (1, 2), (3, 3)):
        await recovery_log_copy.write(place, LogPart("auth", first, last), b"".join(b"%d\n" % each for each in range(first, last + 1)))
    await recovery_log_copy.join(place, "auth")
    assert await lines_of(place) == numbered(3)


async def test_only_new_anchors_are_stored(place: BackupPlace, tmp_path: Path) -> None:
    file = tmp_path / "audit_anchors.jsonl"
    anchors = FileCopy(place, layout.ANCHORS, file, 1)
    await anchors.copy()
    assert brittle(place).written == [], "there is no file yet"
    file.write_bytes(b"a\nb\n")
    await anchors.copy()
    await anchors.copy()
    file.write_bytes(b"a\nb\nc\nd\ntor")
    await FileCopy(place, layout.ANCHORS, file, 1).copy()
    assert brittle(place).written == [LogPart("anchors", first, last).object for first, last in ((1, 2), (3, 4))]
    assert await lines_of(place, "anchors") == [b"a", b"b", b"c", b"d"], "a line without its end is still being written"


async def test_only_the_new_end_of_the_file_is_read(place: BackupPlace, tmp_path: Path) -> None:
    """The file grows for years. The whole file is compared with the store only after a failure, or if the file was replaced."""
    file = tmp_path / "audit_anchors.jsonl"
    anchors = FileCopy(place, layout.ANCHORS, file, 1)
    old = [b"%0100000d" % number for number in range(30)]
    file.write_bytes(b"\n".join(old) + b"\nto")
    await anchors.copy()
    append(file, b"rn\nc\n")
    before = psutil.Process().io_counters().read_chars
    await anchors.copy()
    assert psutil.Process().io_counters().read_chars - before < 1_000_000
    assert await lines_of(place, "anchors") == [*old, b"torn", b"c"]
    append(file, b"d\n")
    brittle(place).is_away = True
    with pytest.raises(errors.Unavailable, match="away"):
        await anchors.copy()
    brittle(place).is_away = False
    # The failed write reached the store after all.
    await recovery_log_copy.write(place, LogPart(layout.ANCHORS, 33, 33), b"d\n")
    await anchors.copy()
    append(file, b"e\n")
    await anchors.copy()
    other = b"another file, longer than the old one" * 100_000
    file.write_bytes(other + b"\n")
    await anchors.copy()
    assert await lines_of(place, "anchors") == [*old, b"torn", b"c", b"d", b"e", other]


def append(file: Path, text: bytes) -> None:
    with file.open("ab") as opened:
        opened.write(text)


async def test_a_new_file_of_anchors_is_stored_behind_the_old_one(place: BackupPlace, tmp_path: Path) -> None:
    file = tmp_path / "audit_anchors.jsonl"
    anchors = FileCopy(place, layout.ANCHORS, file, 1)
    file.write_bytes(b"a\nb\n")
    await anchors.copy()
    file.write_bytes(b"c\n")
    await anchors.copy()
    assert await lines_of(place, "anchors") == [b"a", b"b", b"c"]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the copy sets no event
            await asyncio.sleep(0.005)
