"""A process locks the file that it writes to, and the lock is free again as soon as that process has ended."""

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared import errors
from shared.stores import file_lock

HOLD = """
import asyncio, sys
from pathlib import Path
from shared.stores import file_lock
async def main():
    async with file_lock.hold(Path(sys.argv[1])):
        print("locked", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_another_process_cannot_lock_it_until_the_first_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "node.mesh"
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(path), stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        async with asyncio.timeout(30):
            assert await holder.stdout.readline() == b"locked\n"
        with pytest.raises(errors.BadSettings, match=r"another process uses .*node\.mesh"):
            async with file_lock.hold(path, patience_seconds=0.2):
                raise AssertionError("two processes have the lock")
    finally:
        holder.kill()
        await holder.wait()
    async with file_lock.hold(path, patience_seconds=0):
        pass


async def test_a_process_that_waits_gets_the_lock_when_the_first_one_ends(tmp_path: Path) -> None:
    path, got = tmp_path / "journal", asyncio.Event()

    async def wait() -> None:
        async with file_lock.hold(path, patience_seconds=20):
            got.set()

    async with asyncio.TaskGroup() as tasks, file_lock.hold(path):
        tasks.create_task(wait())
        await asyncio.sleep(0)
        assert not got.is_set()
    assert got.is_set()


async def test_where_nothing_can_be_written_nothing_is_locked(tmp_path: Path) -> None:
    async with file_lock.hold(tmp_path / "missing" / "node.mesh"), file_lock.hold(tmp_path / "missing" / "node.mesh"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
async def test_on_a_file_system_without_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    async with file_lock.hold(tmp_path / "node.mesh"), file_lock.hold(tmp_path / "node.mesh"):
        assert (tmp_path / "node.mesh.lock").exists()
