"""Shipping the write-ahead log of a real PostgreSQL to the store."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import psutil
import pytest

from features.backup.stack import catalog, sealing
from features.backup.stack.agent import base_backup, wal_shipping
from features.backup.stack.agent.source_database import SLOT
from features.backup.stack.agent.wal_shipping import SpooledFiles, WalGap, WalShipping, find_gap, parse_folder
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import Segment, WalObject
from shared import errors
from tests import stacks, tiers
from tests.features.backup.stack import copied_database
from tests.features.backup.stack.copied_database import CopiedDatabase
from tests.servers import PostgresServer

MB16 = 16 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with copied_database.provisioned_server() as server:
        yield server


@pytest.fixture
async def copied(server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CopiedDatabase]:
    server.ensure_running()
    for module in (base_backup, wal_shipping):
        monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    sizes = {"BACKUP_WAL_MOST": "64MB", "BACKUP_BASE_AFTER_WAL": "64MB"}
    async with copied_database.copied_database(server, tmp_path, BACKUP_SHIP_SECONDS="1", **sizes) as made:
        yield made


async def read(copied: CopiedDatabase) -> StoreCatalog:
    return await catalog.read(copied.place.store, copied.place.mesh)


async def write(copied: CopiedDatabase, *, switch: bool = False) -> datetime:
    """Commit a row, and return when it was committed; ``switch`` finishes its segment."""
    async with copied.admin() as admin:
        await admin.execute("CREATE TABLE IF NOT EXISTS public.written (at timestamptz); INSERT INTO public.written VALUES (now())")
        at: datetime = await admin.fetchval("SELECT clock_timestamp()")
        if switch:
            await admin.execute("SELECT pg_switch_wal()")
    return at


async def opened(copied: CopiedDatabase, segment: Segment) -> WalObject:
    name = segment.object(MB16)
    body = await copied.place.store.get(name)
    mesh = copied.place.mesh
    return msgspec.msgpack.decode(sealing.open_bytes(name, body, [copied.identity], mesh.keys, mesh.mesh), type=WalObject)


def spooled(copied: CopiedDatabase) -> SpooledFiles:
    return parse_folder([path.name for path in (copied.home.root / "backup").glob("wal-*/*")], MB16)


async def test_commits_are_in_the_store_and_finished_segments_leave_the_home(copied: CopiedDatabase) -> None:
    async with copied.shipping() as shipping:
        first = await write(copied, switch=True)
        second = await write(copied)
        await stacks.until(lambda: reached(shipping, second), what="both commits are in the store")
        found = await read(copied)
        finished = [segment for segment in found.segments if not segment.is_partial]
        (partial,) = (segment for segment in found.segments if segment.is_partial)
        assert partial.number == finished[-1].number + 1
        whole, part = await opened(copied, finished[-1]), await opened(copied, partial)
        assert (len(whole.data), len(part.data), whole.lsn) == (MB16, MB16, finished[-1].end(MB16))
        assert part.until > first
        assert part.lsn > whole.lsn
        assert found.state is not None
        assert (found.state.lsn >= part.lsn, found.state.term, found.state.timeline) == (True, 1, partial.timeline)
        assert spooled(copied).finished == ()
        assert shipping.lag_seconds is not None
        # Once the segment is finished, its unfinished object is deleted from the store.
        async with copied.admin() as admin:
            await admin.execute("CREATE SCHEMA IF NOT EXISTS auth")
            await admin.execute("CREATE TABLE auth.audit_heads AS VALUES ('house', 7), ('home', 3)")
            await admin.execute("ALTER TABLE auth.audit_heads RENAME column2 TO sequence")
        await write(copied, switch=True)
        last = await write(copied)
        await shipping.ship_partial()
        assert shipping.until is not None
        assert shipping.until > last
        # The server itself writes some log now and then.
        await stacks.until(lambda: is_in_step(shipping), what="the store has everything")
        state = (await read(copied)).state
        assert state is not None
        assert state.audit_rows == 10
        assert partial not in (await read(copied)).segments


async def reached(shipping: WalShipping, moment: datetime) -> bool:
    return shipping.until is not None and shipping.until > moment


async def is_in_step(shipping: WalShipping) -> bool:
    return shipping.lag_seconds == 0


async def test_log_continues_after_a_restart(copied: CopiedDatabase) -> None:
    for _ in range(2):
        async with copied.shipping() as shipping:
            await write(copied, switch=True)
            done = await write(copied)
            await stacks.until(lambda at=done: reached(shipping, at), what="it is in the store")  # type: ignore[misc]
    numbers = [segment.number for segment in (await read(copied)).segments]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


async def test_a_segment_that_a_killed_receiver_was_filling_with_zeros_does_not_end_the_shipping(copied: CopiedDatabase) -> None:
    async with copied.shipping() as shipping:
        await write(copied)
        await stacks.until(lambda: caught_up(shipping), what="the log is followed")
    (partial,) = (copied.home.root / "backup").glob("wal-*/*.partial")
    partial.write_bytes(bytes(3 << 20))
    async with copied.shipping() as shipping:
        done = await write(copied)
        await stacks.until(lambda: reached(shipping, done), what="the last commit is in the store")


async def test_killed_server_loses_nothing(copied: CopiedDatabase) -> None:
    async with copied.shipping() as shipping:
        await write(copied)
        await stacks.until(lambda: caught_up(shipping), what="the log is followed")
        done = await write(copied)
        copied.server.kill()
        # In this thread: the server ends with the thread that starts it.
        copied.server.start()
        await stacks.until(lambda: reached(shipping, done), what="the last commit is in the store")


async def test_position_keeps_one_connection_and_opens_another_after_a_restart(copied: CopiedDatabase) -> None:
    async def backend() -> int:
        async with copied.admin() as admin:
            (row,) = await admin.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'aimesh_backup'")
            return int(row["pid"])

    await copied.source.position()
    first = await backend()
    await asyncio.gather(*(copied.source.position() for _ in range(3)))
    assert await backend() == first
    copied.server.kill()
    with pytest.raises(errors.Unavailable, match="PostgreSQL"):
        await copied.source.position()
    copied.server.start()
    await copied.source.position()
    assert await backend() != first


async def test_two_at_once_make_and_drop_the_slot(copied: CopiedDatabase) -> None:
    """As the log shipping and a backup do when both begin at once."""
    for _ in range(tiers.volume(10)):
        await asyncio.gather(*(copied.source.ensure_slot() for _ in range(4)))
        assert (await copied.source.position()).slot_status == "reserved"
        await asyncio.gather(*(copied.source.drop_slot() for _ in range(4)))
        assert (await copied.source.position()).slot_status == "missing"


async def caught_up(shipping: WalShipping) -> bool:
    return shipping.lag_seconds == 0


async def test_lost_slot_is_a_gap_and_after_it_the_log_continues(copied: CopiedDatabase) -> None:
    async with copied.shipping() as shipping:
        await write(copied, switch=True)
        await stacks.until(lambda: has_finished(copied), what="a segment is in the store")
    before = (await read(copied)).segments
    await copied.source.drop_slot()
    for _ in range(3):
        await write(copied, switch=True)
    with pytest.raises(WalGap, match="aimesh_backup is missing"):
        await asyncio.wait_for(shipping.run(), 20)
    await shipping.start_over()
    async with copied.admin() as admin:
        assert await admin.fetchval("SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", SLOT) == 1
    task = asyncio.create_task(shipping.run())
    done = await write(copied, switch=True)
    await stacks.until(lambda: reached(shipping, done), what="the log continues")
    task.cancel()
    await asyncio.wait([task])
    assert max((await read(copied)).segments).number > max(before).number + 1


async def has_finished(copied: CopiedDatabase) -> bool:
    return any(not segment.is_partial for segment in (await read(copied)).segments)


async def test_log_waits_for_a_failing_store_up_to_its_bound(copied: CopiedDatabase, caplog: pytest.LogCaptureFixture) -> None:
    copied.store.failing = ("wal/", "state.json")
    async with copied.shipping() as shipping:
        for _ in range(7):
            await write(copied, switch=True)
        await stacks.until(lambda: is_full(copied), what="the folder is full")
        await stacks.until(no_receiver, what="nothing is received", ignoring=(psutil.NoSuchProcess,))
        held = spooled(copied).finished
        for _ in range(3):
            done = await write(copied, switch=True)
        await stacks.until(lambda: has_said(caplog, "403"), what="it says why")
        assert (await read(copied)).segments == ()
        assert await no_receiver()
        assert spooled(copied).finished == held, "a full folder does not grow"
        copied.store.failing = ()
        await stacks.until(lambda: reached(shipping, done), seconds=60, what="it catches up")
    numbers = [segment.number for segment in (await read(copied)).segments]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert len(numbers) >= 7 + 3


async def has_said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text


async def is_full(copied: CopiedDatabase) -> bool:
    return len(spooled(copied).finished) * MB16 > copied.place.settings.wal_most_bytes


async def no_receiver() -> bool:
    return not any(child.name() == "pg_receivewal" for child in psutil.Process().children(recursive=True))


async def test_receiver_ends_with_its_owner(copied: CopiedDatabase, tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib
from tests.servers import PostgresServer
from tests.features.backup.stack import copied_database
from features.backup.stack.agent.wal_shipping import WalShipping
from features.backup.stack import backup_place
from features.backup.stack.agent import source_database
from features.backup.settings import BackupSettings
from stack import stack_home
from shared.types import MeshName
async def main():
    home = stack_home.locate({{"AIMESH_HOME": {str(copied.home.root)!r}}})
    settings = BackupSettings(backup_to={str(copied.folder)!r}, backup_recipients={copied.place.mesh.recipients!r})
    place = await backup_place.open_place(home, settings, MeshName("home"))
    source = source_database.SourceDatabase({copied.place.settings.backup_database_url!r}, home.run)
    await WalShipping(place, source, term=1).run()
asyncio.run(main())
"""
    file = tmp_path / "ship.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(stacks.REPOSITORY)}
    process = await asyncio.create_subprocess_exec(sys.executable, str(file), cwd=stacks.REPOSITORY, env=environment)
    (receiver,) = await stacks.until(lambda: receivers(process.pid), what="pg_receivewal runs", ignoring=(psutil.NoSuchProcess,))
    assert "password-of" not in " ".join(receiver.cmdline())
    process.kill()
    await process.wait()

    async def has_ended() -> bool:
        return not receiver.is_running() or receiver.status() == psutil.STATUS_ZOMBIE

    await stacks.until(has_ended, what="pg_receivewal has ended")


async def receivers(pid: int) -> list[psutil.Process] | None:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "pg_receivewal"] or None


def test_files_of_the_folder() -> None:
    names = [
        "000000010000000000000009", "00000001000000000000000A.partial", "00000002.history", "00000002000000010000000B.partial",
        "x", "archive_status",
    ]  # fmt: skip
    found = parse_folder(names, MB16)
    assert found.finished == (Segment(1, 9),)
    assert found.partial == Segment(2, 256 + 11, True)
    assert found.ended == (Segment(1, 10, True),)
    assert found.histories == (2,)


@pytest.mark.parametrize(
    ("stored", "finished", "partial", "gap"),
    [
        (None, [5], 6, None),
        (4, [5], 6, None),
        (5, [5], 6, None),
        (4, [], 5, None),
        (4, [], None, None),
        (4, [6], 7, "segments 5 to 5 of timeline 1 are missing"),
        (4, [], 9, "segments 5 to 8 of timeline 1 are missing"),
        (4, [5, 8], 9, "segments 6 to 7 of timeline 1 are missing"),
    ],
)
def test_gaps(stored: int | None, finished: list[int], partial: int | None, gap: str | None) -> None:
    spool = SpooledFiles(tuple(Segment(1, each) for each in finished), None if partial is None else Segment(1, partial, True))
    assert find_gap(None if stored is None else Segment(1, stored), spool) == gap


def test_new_timeline_may_begin_anywhere() -> None:
    assert find_gap(Segment(1, 4), SpooledFiles((Segment(2, 9),), Segment(2, 10, True))) is None
