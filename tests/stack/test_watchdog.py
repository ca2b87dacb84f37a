# ruff: noqa: ASYNC110 - it waits for other processes, which set no event
"""Programs that run but no longer answer: which ones are restarted, and which ones only seem to hang."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stack import ports, probes, process_keeper, processes, watchdog
from stack.control import ProgramStatus
from stack.servers.program import CommandProbe, Program, SocketProbe
from stack.watchdog import START_SECONDS, SilentProgram

#: Sends a fixed answer to every connection, for HTTP or another protocol.
SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    line, _ = listener.accept()
    line.recv(1000)
    line.sendall(sys.argv[2].encode().decode("unicode_escape").encode())
    line.close()
"""
#: Answers and closes before it reads the request, like a gateway with too many connections: the request meets a reset.
HASTY_SERVER = """
import socket, struct, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    line, _ = listener.accept()
    line.sendall(sys.argv[2].encode().decode("unicode_escape").encode())
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", int(sys.argv[3]), 0))
    line.close()
"""
#: Answers with the file's current content.
FILE_SERVER = SERVER.replace('sys.argv[2].encode().decode("unicode_escape").encode()', 'open(sys.argv[2], "rb").read()')
REFUSAL = r"HTTP/1.1 503 Service Unavailable\r\n\r\n{}"


def program(answer: str, *, is_service: bool, server: str = SERVER, linger: int = 0) -> Program:
    port = ports.find_free()
    return Program(
        name="dummy",
        command=(sys.executable, "-c", server, str(port), answer, str(linger)),
        environment={"PATH": os.environ["PATH"]},
        stage=1,
        grace_seconds=0.2,
        url=f"http://127.0.0.1:{port}" if is_service else None,
        probe=None if is_service else SocketProbe(port, b"PING\r\n", b"+PONG"),
    )


@pytest.mark.parametrize(
    ("silence", "now", "expected"),
    [
        (SilentProgram(1, 0.0, has_answered=True, tries=12), 60.0, True),
        (SilentProgram(1, 0.0, has_answered=True, tries=12), 59.9, False),
        # The watchdog's process or the machine slept: one failed check after a long pause proves nothing.
        (SilentProgram(1, 0.0, has_answered=True, tries=2), 3600.0, False),
        # The program is still starting.
        (SilentProgram(1, 0.0, has_answered=False, tries=100), START_SECONDS - 1, False),
        (SilentProgram(1, 0.0, has_answered=False, tries=100), START_SECONDS, True),
    ],
)
def test_when_a_program_counts_as_hung(silence: SilentProgram, now: float, expected: bool) -> None:
    assert watchdog.is_hung(silence, now) is expected


def test_answer_or_new_process_resets_the_count() -> None:
    silent = SilentProgram(1, 0.0, has_answered=True, tries=9)
    assert watchdog.note_answer(silent, 1, False, 50.0) == SilentProgram(1, 0.0, has_answered=True, tries=10)
    assert watchdog.note_answer(silent, 1, True, 50.0) == SilentProgram(1, 50.0, has_answered=True, tries=0)
    assert watchdog.note_answer(silent, 2, False, 50.0) == SilentProgram(2, 50.0, has_answered=False, tries=1)


class Clock:
    """Advances twenty seconds at each reading by the watchdog, until ``stands`` is set."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.stands = False

    def __call__(self) -> float:
        if not self.stands:
            self.seconds += 20
        return self.seconds

    async def until(self, seconds: float) -> None:
        async with asyncio.timeout(30):
            while self.seconds < seconds:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def watched(kept: Program, log: Path) -> AsyncIterator[tuple[process_keeper.ProcessKeeper, Clock]]:
    """One program with its keeper and a watchdog."""
    clock = Clock()
    async with asyncio.TaskGroup() as tasks:
        one = process_keeper.ProcessKeeper(kept, log, tasks, lambda child: None)
        running = tasks.create_task(one.run())
        while not await probes.gets_answer(kept):
            await asyncio.sleep(0.01)
        watching = tasks.create_task(watchdog.watch({kept.name: one}, look_seconds=0.01, now=clock))
        try:
            yield one, clock
        finally:
            watching.cancel()
            one.order(process_keeper.StopWanted())
            await running


@pytest.mark.parametrize("is_service", [True, False])
async def test_hanging_program_is_restarted(tmp_path: Path, is_service: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_PROBE_SECONDS", 0.5)
    async with watched(program("+PONG", is_service=is_service), tmp_path / "log") as (kept, clock):
        await clock.until(30)
        first = kept.status.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        async with asyncio.timeout(60):
            while kept.status.pid == first:
                await asyncio.sleep(0.02)
            # Stop the clock: however long the next process takes to start, it must not count as hung.
            clock.stands = True
            while kept.status.pid is None or not await probes.gets_answer(kept.program):
                await asyncio.sleep(0.02)
        assert kept.status.crashes == 1


async def test_service_whose_task_has_died_is_restarted(tmp_path: Path) -> None:
    says = tmp_path / "says"
    says.write_bytes(b"HTTP/1.1 200 OK\r\n\r\n{}")
    async with watched(program(str(says), is_service=True, server=FILE_SERVER), tmp_path / "log") as (kept, clock):
        await clock.until(30)
        first = kept.status.pid
        says.write_bytes(b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"status": "failed", "service": "auth"}')
        async with asyncio.timeout(60):
            while kept.status.pid == first:
                await asyncio.sleep(0.02)
        clock.stands = True
        assert kept.status.crashes == 1


@pytest.mark.parametrize(("answer", "is_service"), [(REFUSAL, True), ("-LOADING", False), ("-", False)])
async def test_program_that_refuses_is_left_alone(tmp_path: Path, answer: str, is_service: bool) -> None:
    async with watched(program(answer, is_service=is_service), tmp_path / "log") as (kept, clock):
        first = kept.status.pid
        await clock.until(2 * watchdog.START_SECONDS)
        assert (kept.status.pid, kept.status.crashes) == (first, 0)


@pytest.mark.parametrize("answer", [REFUSAL, ""], ids=["503", "nothing"])
@pytest.mark.parametrize("linger", [0, 1], ids=["closed", "reset"])
async def test_service_that_closes_before_reading_is_left_alone(tmp_path: Path, answer: str, linger: int) -> None:
    hasty = program(answer, is_service=True, server=HASTY_SERVER, linger=linger)
    async with watched(hasty, tmp_path / "log") as (kept, clock):
        first = kept.status.pid
        await clock.until(2 * watchdog.START_SECONDS)
        assert (kept.status.pid, kept.status.crashes) == (first, 0)
        assert hasty.url is not None
        health = await probes.health_of(hasty.url)
        assert not health.ready
        assert health.why != "nothing listens on its port yet"


@pytest.mark.parametrize(("status", "answers"), [(0, True), (1, True), (2, False)])
async def test_starting_postgresql_counts_as_answering(status: int, answers: bool) -> None:
    probe = CommandProbe(("sh", "-c", f"exit {status}"), silence_status=2)
    assert await probes.gets_answer(Program(name="postgres", command=(), environment={}, stage=0, probe=probe)) is answers
    assert await probes.is_ready(probe) is (status == 0)


async def test_probe_that_takes_too_long_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_PROBE_SECONDS", 1.0)
    file = tmp_path / "pid"
    assert not await probes.is_ready(CommandProbe(("sh", "-c", f"echo $$ > {file}; exec sleep 600"), silence_status=2))
    assert processes.start_of(int(file.read_text())) is None


SLICE = 10.0
ALL = ("postgres", "valkey", "gateway", "web")


async def restarted(monkeypatch: pytest.MonkeyPatch, rounds: list[Set[str]]) -> list[tuple[str, float]]:
    """Return which programs the watchdog restarts, and when, given the silent programs of each round; a round takes ten seconds."""
    found: list[tuple[str, float]] = []
    seconds = 0.0

    class Kept:
        def __init__(self, name: str, pid: int) -> None:
            self.status = ProgramStatus(name, "running", pid, 0.0, 0, "")
            self.program = name

        def order(self, event: process_keeper.Hung) -> None:
            assert event.pid == self.status.pid
            found.append((self.status.name, seconds))

    async def gets_answer(name: str) -> bool:
        return name not in rounds[int(seconds / SLICE)]

    def now() -> float:
        nonlocal seconds
        seconds += SLICE
        if seconds >= SLICE * len(rounds):
            raise asyncio.CancelledError
        return seconds

    monkeypatch.setattr(probes, "gets_answer", gets_answer)
    with contextlib.suppress(asyncio.CancelledError):
        await watchdog.watch({name: Kept(name, pid) for pid, name in enumerate(ALL)}, look_seconds=0, now=now)
    return found


async def test_suspended_machine_restarts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await restarted(monkeypatch, [set()] * 3 + [set(ALL)] * 30 + [{"web"}] * 5 + [set()] * 10) == []


async def test_single_hanging_program_is_restarted_after_a_shared_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = await restarted(monkeypatch, [set()] * 3 + [set(ALL)] * 3 + [{"postgres"}] * 7)
    assert one == ("postgres", 120.0)


async def test_single_hanging_program_is_restarted_despite_occasional_shared_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = await restarted(monkeypatch, [set()] * 3 + [{"postgres"}, {"postgres"}, set(ALL)] * 4)
    assert one == ("postgres", 110.0)


async def test_half_of_the_programs_are_no_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await restarted(monkeypatch, [set()] * 3 + [{"postgres", "gateway"}] * 8)
    assert {name for name, _ in found} == {"postgres", "gateway"}


async def test_programs_that_hang_together_are_finally_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await restarted(monkeypatch, [set()] * 3 + [set(ALL)] * 70)
    assert {name for name, _ in found} == set(ALL)
    assert min(at for _, at in found) >= watchdog.SHARED_SILENCE_SECONDS


async def test_program_that_just_ended_is_stopped_without_an_error() -> None:
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    assert await processes.stop(ended, signal.SIGTERM, 1.0)
    assert ended.returncode == 0
