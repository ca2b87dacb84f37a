"""`aicli top` in a real terminal, with a real mesh."""

import asyncio
import fcntl
import json
import signal
import subprocess
import sys
import termios

import pytest

from shared.lists import health
from shared.types import SERVICE_NAMES
from tests.cli.top import screens
from tests.cli.top.screens import PICTURE
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import REPOSITORY, RunningStack, until

CTRL_C = "\x03"


def start(stack: RunningStack, person: screens.Person) -> subprocess.Popen[bytes]:
    """Start it with the person's terminal as its controlling terminal, so that Ctrl-C there sends a signal."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "top", "--every", "0.5"],
        stdin=person.ours,
        stdout=person.ours,
        stderr=person.ours,
        cwd=REPOSITORY,
        env={**stack.environment, "TERM": "xterm", "NO_COLOR": "1"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call
    )


async def test_a_person_watches_the_mesh_and_leaves_by_ctrl_c(stack: RunningStack) -> None:
    with screens.sitting(columns=160, rows=50) as person:
        before = termios.tcgetattr(person.ours)
        running = start(stack, person)
        try:
            picture = await person.sees("requests/s", *SERVICE_NAMES.values(), "echo", seconds=30)
            assert picture.startswith(tuple(f"aimesh {health.status(of)[0]} " for of in ("healthy", "degraded"))), picture
            assert "not known" not in picture
            await person.sees("requests/s", pictures=person.shown.count(PICTURE) + 2)
            person.press(CTRL_C)
            await person.sees_the_end()
            assert await asyncio.to_thread(running.wait, 10) == 0
        finally:
            running.kill()
            running.wait()
        assert termios.tcgetattr(person.ours) == before
        assert person.shown.endswith("\x1b[?1049l")


@pytest.mark.nightly("stacks")
async def test_a_service_that_hangs_is_said_to_be_silent_and_is_back_when_it_goes_on(stack: RunningStack) -> None:
    with screens.sitting(columns=160, rows=50) as person:
        running = start(stack, person)
        try:
            await person.sees("requests/s", "echo", seconds=30)
            await stack.signal("metrics", signal.SIGSTOP)
            try:
                picture = await person.sees("the health", "the alerts", "s old – ", "MODELS", seconds=30)
                assert "the nodes" not in picture
            finally:
                await stack.signal("metrics", signal.SIGCONT)
            async with asyncio.timeout(30):
                while "s old – " in await person.sees("requests/s"):
                    await person.sees(pictures=person.shown.count(PICTURE) + 1)
            person.press("q")
            await person.sees_the_end()
            assert await asyncio.to_thread(running.wait, 10) == 0
        finally:
            running.kill()
            running.wait()


@pytest.mark.nightly("stacks")
async def test_requests_are_seen_in_the_rates_and_loads_in_the_table(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    async def seen() -> bool:
        await asking.rpc(api_client.mesh, ann.key.secret, "four words in here")
        frame = json.loads((await stack.aicli("top", "--json", "--once")).out)
        loads = [node for node in frame["nodes"] if node["cpu"] is not None and node["tokens_per_second"]]
        return bool(frame["requests_per_second"] and frame["output_tokens_per_second"] and loads and frame["silent"] == [])

    await until(seen, seconds=60, what="the history has it")


async def test_it_is_for_administrators(stack: RunningStack, ann: Person) -> None:
    done = await stack.aicli("top", "--once", AICLI_API_KEY=ann.key.secret)
    assert (done.status, done.out) == (1, "")
    assert "administrator" in done.err
