"""Machines outside the stack end with the process that started them."""

import subprocess
import sys
from pathlib import Path

from tests import outside
from tests.stacks import REPOSITORY, until

#: `aicli` runs in the machine's home, so this `cli` stands before ours.
_PARENT = """
import sys, time
from tests import outside

with outside.machine() as machine:
    folder = machine.home / "cli"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "main.py").write_text("import time; print('runs', flush=True); time.sleep(600)")
    running = machine.start()
    # Earlier it would end by itself, because its program is gone.
    while "runs" not in running.text():
        time.sleep(0.01)
    print(running.process.pid, machine.home, flush=True)
    time.sleep(0 if sys.argv[1] == "leave" else 600)
"""


def _start(how: str) -> tuple[subprocess.Popen[str], int, Path]:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, how], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, home = parent.stdout.readline().split()
    return parent, int(pid), Path(home)


def _is_there(pid: int, home: Path) -> bool:
    return home.exists() or bool(outside.command(pid))


async def _is_gone(pid: int, home: Path) -> None:
    async def gone() -> bool:
        return not _is_there(pid, home)

    await until(gone, what="the process and its folder are gone")


async def test_a_worker_ends_when_the_test_is_killed() -> None:
    parent, pid, home = _start("stay")
    assert _is_there(pid, home)
    parent.kill()
    parent.communicate()
    await _is_gone(pid, home)


async def test_a_worker_ends_with_its_block() -> None:
    parent, pid, home = _start("leave")
    parent.communicate(timeout=60)
    assert parent.returncode == 0
    await _is_gone(pid, home)
