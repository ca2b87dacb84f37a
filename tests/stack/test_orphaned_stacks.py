"""A stack that tests or benches started ends with them, also when they are killed in the middle of its start."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from stack import processes
from stack import stack_home as homes
from tests.stacks import REPOSITORY, until

STARTS_A_STACK = """
import asyncio
from tests import stacks

planned = stacks.plan({"AIMESH_ECHO": "1"})
print(planned.home, flush=True)
asyncio.run(planned.up())
"""


async def test_a_stack_ends_when_the_tests_are_killed() -> None:
    tests = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS_A_STACK, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert tests.stdout is not None
    home = homes.locate({"AIMESH_HOME": (await tests.stdout.readline()).decode().strip()})

    async def has_programs() -> bool:
        return processes.children_file(home).exists()

    async def is_gone() -> bool:
        return not home.root.exists()

    await until(has_programs, seconds=60, what="the supervisor runs programs")
    supervisor = _holder(home.run / "supervisor.lock")
    tests.send_signal(signal.SIGKILL)
    await tests.wait()
    await until(is_gone, seconds=60, what="the stack's folder is removed")
    assert processes.start_of(supervisor) is None
    assert not _processes_in(home.root)


def _holder(lock: Path) -> int:
    inode = lock.stat().st_ino
    locks = (line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines())
    return next(int(fields[4]) for fields in locks if fields[5].endswith(f":{inode}"))


def _processes_in(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # it has just ended
            found += [str(entry)] if entry.resolve().is_relative_to(folder) else []
    return found
