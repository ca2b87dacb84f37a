"""The stack of a measured `make up` ends with the bench, however that ends."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests import outside
from tests.stacks import REPOSITORY, until

#: In place of a clone's. `up` starts a program that stays, as `aicli stack up` does, and may last as long as the test.
_MAKEFILE = """
up:
	@setsid sleep 600 >/dev/null 2>&1 & echo $$! >stack
	@sleep $(LASTS)
down:
	@kill $$(cat stack)
"""
_PARENT = """
import asyncio, os, pathlib, sys
from bench import first_answer

async def run():
    clone, lasts, stays = sys.argv[1:]
    async with first_answer.made_up(pathlib.Path(clone), {**os.environ, "LASTS": lasts}):
        await asyncio.sleep(float(stays))

asyncio.run(run())
"""


@pytest.mark.parametrize(
    ("lasts", "stays", "is_killed"),
    [
        pytest.param(0, 0, False, id="at the end of the block"),
        pytest.param(0, 600, True, id="killed with the stack up"),
        pytest.param(600, 0, True, id="killed while make up runs"),
    ],
)
async def test_the_stack_of_make_up_ends_with_the_bench(tmp_path: Path, lasts: int, stays: int, is_killed: bool) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "Makefile").write_text(_MAKEFILE, encoding="utf-8")
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", _PARENT, clone, str(lasts), str(stays), cwd=REPOSITORY)
    if is_killed:

        async def find() -> int | None:
            # It has no command line for a moment, between the shell's and its own.
            started = int((clone / "stack").read_text(encoding="ascii"))
            return started if b"sleep" in outside.command(started) else None

        stack = await until(find, seconds=20, ignoring=(OSError, ValueError), what="the stack is up")
        parent.kill()
    assert await parent.wait() == (-signal.SIGKILL if is_killed else 0)

    async def is_over() -> bool:
        return not clone.exists() and not (is_killed and outside.command(stack))

    await until(is_over, what="the stack and its clone are gone")
