"""The live view on a terminal: frames, keys, resizing, and the restored terminal."""

import asyncio
import os
import signal
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.profile import Profile
from cli.top import terminal
from cli.top.live_view import LiveView
from cli.top.terminal import Terminal
from shared import errors
from shared.api import gateway
from tests.cli.fake_mesh import FakeConnection, FakeMesh
from tests.cli.top import screens, seen
from tests.cli.top.screens import PICTURE, SECONDS, Person


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with screens.sitting() as person:
        yield person


@pytest.fixture
def mesh() -> FakeMesh:
    found = FakeMesh()
    seen.fill(found)
    return found


def live(screen: Person, mesh: FakeMesh, seconds: float = 0.02) -> LiveView:
    return LiveView(FakeConnection(mesh, Profile(node_key_file=Path("none"))), seconds, Terminal(screen.stdin, screen.stdout))


@asynccontextmanager
async def restored(screen: Person) -> AsyncIterator[None]:
    """The terminal is restored: modes, cursor, screen, and the resize handler."""
    before = termios.tcgetattr(screen.ours)
    yield
    assert termios.tcgetattr(screen.ours) == before
    await screen.sees_the_end()
    assert screen.shown.endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")
    assert signal.getsignal(signal.SIGWINCH) == signal.SIG_DFL


async def test_frames_are_shown_until_q(screen: Person, mesh: FakeMesh) -> None:
    async with restored(screen), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(live(screen, mesh).run())
        first = await screen.sees("12 requests/s", "UWORKERAA")
        assert "\x1b[33mDegraded\x1b[0m" in first
        mesh.answer(gateway.list_nodes, gateway.NodeRows((seen.node(running=3, slots=4),)))
        await screen.sees("3 running", "3/4")
        screen.press("q")
        async with asyncio.timeout(SECONDS):
            await running


async def test_silent_source_is_shown_until_it_is_back(screen: Person, mesh: FakeMesh) -> None:
    async with restored(screen), asyncio.TaskGroup() as tasks:
        tasks.create_task(live(screen, mesh).run())
        await screen.sees("UWORKERAA")
        mesh.answer(gateway.list_nodes, errors.NotReachable("no gateway answers"))
        assert "UWORKERAA" in await screen.sees("the nodes: ", "s old – no gateway answers", "MODELS")
        mesh.answer(gateway.list_nodes, gateway.NodeRows(()))
        async with asyncio.timeout(SECONDS):
            while "no gateway answers" in await screen.sees("running"):
                await screen.sees(pictures=screen.shown.count(PICTURE) + 1)
        screen.press("q")


async def test_keys_work_between_two_refreshes(screen: Person, mesh: FakeMesh) -> None:
    async with restored(screen), asyncio.TaskGroup() as tasks:
        tasks.create_task(live(screen, mesh, seconds=3600).run())
        await screen.sees("sort: node", "UGATEWAYC", "UWORKERAA")
        screen.press("s")
        await screen.sees("sort: rtt")
        screen.press("\x1b[A\x1b[Z")
        screen.press("q")


async def test_resize_redraws_and_small_terminals_are_cropped(screen: Person, mesh: FakeMesh) -> None:
    async with restored(screen), asyncio.TaskGroup() as tasks:
        tasks.create_task(live(screen, mesh, seconds=3600).run())
        await screen.sees("UWORKERAA", "no heartbeat\x1b[K")
        pictures = screen.shown.count(PICTURE)
        screen.resize(20, 4)
        os.kill(os.getpid(), signal.SIGWINCH)
        small = await screen.sees("aimesh", pictures=pictures + 1)
        assert small.count("\r\n") == 3
        assert "UWORKERAA" not in small
        screen.press("q")


async def test_terminal_is_restored_after_an_error(screen: Person, mesh: FakeMesh) -> None:
    async with restored(screen):
        mesh.answer(gateway.list_nodes, errors.NotAllowed("the key was revoked"))
        with pytest.raises(errors.NotAllowed, match="the key was revoked"):
            await live(screen, mesh).run()


async def test_terminal_is_restored_after_an_interrupt(screen: Person, mesh: FakeMesh) -> None:
    async with restored(screen):
        running = asyncio.create_task(live(screen, mesh).run())
        await screen.sees("UWORKERAA")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_no_color_if_disabled(screen: Person, mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(live(screen, mesh).run())
        assert "\x1b[3" not in await screen.sees("UWORKERAA")
        screen.press("q")


@pytest.mark.parametrize(
    ("typed", "pressed"),
    [
        (b"q", ["q"]),
        (b"sq", ["s", "q"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[Aq", ["page up", "page down", "up", "q"]),
        (b"\x1b[H\x1b[1~\x1bOH\x1b[F\x1b[4~\x1bOF", ["home"] * 3 + ["end"] * 3),
        (b"\x1b[2~\x1b[15~q", ["q"]),
        (b"\x1b", []),
        (b"\x03\xff", []),
    ],
)
def test_key_presses(typed: bytes, pressed: list[str]) -> None:
    assert terminal.keys(typed) == pressed
