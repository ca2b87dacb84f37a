import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from features.backup.stack.restoring import throwaway
from stack import processes

PROGRAM = """
import asyncio, pathlib, sys
from features.backup.stack.restoring import throwaway
async def main():
    async with throwaway.folder(pathlib.Path(sys.argv[1])) as folder:
        (folder / "data").mkdir()
        print(folder, flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_the_next_test_removes_what_a_killed_one_left_and_no_living_ones(tmp_path: Path) -> None:
    living = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, str(tmp_path), stdout=asyncio.subprocess.PIPE) for _ in range(2)
    ]
    folders = []
    for each in living:
        assert each.stdout is not None
        folders.append(Path((await each.stdout.readline()).decode().strip()))
    killed, other = folders
    # The killed program's server does not notice the kill.
    server = await asyncio.create_subprocess_exec("sleep", "1000", cwd=killed / "data")
    (killed / "data" / "postmaster.pid").write_text(f"{server.pid}\n")
    (tmp_path / "aimesh-verify-1").mkdir()
    living[0].kill()
    await living[0].wait()
    async with throwaway.folder(tmp_path) as mine:
        assert names_in(tmp_path) == {mine.name, other.name}
        assert await server.wait() < 0
    assert names_in(tmp_path) == {other.name}
    living[1].kill()
    await living[1].wait()


def test_a_number_that_another_process_has_now_is_left_alone(tmp_path: Path) -> None:
    """After a reboot, another process may have this number."""
    with tempfile.TemporaryDirectory() as elsewhere, subprocess.Popen(["sleep", "1000"], cwd=elsewhere) as stranger:
        folder = tmp_path / "aimesh-verify-1" / "data"
        folder.mkdir(parents=True)
        (folder / "postmaster.pid").write_text(f"{stranger.pid}\n")
        throwaway.remove_leftovers(tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert processes.start_of(stranger.pid) is not None
        stranger.kill()


@pytest.mark.skipif(not throwaway.may_unshare(), reason="only root can make a network namespace")
async def test_a_program_without_a_network_has_only_its_own_loopback() -> None:
    process = await asyncio.create_subprocess_exec(*throwaway.without_network("cat", "/proc/net/dev"), stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert [line.split(b":")[0].strip() for line in output.splitlines()[2:]] == [b"lo"]
