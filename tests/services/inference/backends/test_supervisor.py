"""The supervision of an engine, with engines that fail in every way they can. None of them loads a model."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.inference.backends import supervisor
from services.inference.backends.supervisor import Engine
from services.inference.engine import wire
from shared import errors, restarts
from shared.api.inference import ModelState
from shared.types import ModelName
from tests.services.inference.standins import Reader, Watch, job, until

LOAD = wire.Load("model.gguf", 1, None, 1, 0)

#: Answers Load, then runs what follows with `sock`, `wire` and `commands`.
SPEAKS = """
import os, signal, socket, sys, time
from services.inference.engine import wire
sock = socket.socket(fileno=int(sys.argv[1]))
unframer = wire.Unframer()
def commands():
    while received := sock.recv(65536):
        for body in unframer.feed(received):
            yield wire.command_decoder.decode(body)
arriving = commands()
assert isinstance(next(arriving), wire.Load)
sock.sendall(wire.pack(wire.Loaded("a fake", 64, "", True, "")))
"""


@asynccontextmanager
async def supervised(code: str, watch: Watch | None = None) -> AsyncIterator[Engine]:
    engine = Engine(ModelName("fake"), LOAD, watch or Watch(), program=(sys.executable, "-c", code))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(engine.run())
        try:
            yield engine
        finally:
            running.cancel()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "EXIT_SECONDS", 0.2)


async def test_five_crashes_are_the_end_and_it_says_so() -> None:
    watch = Watch()
    async with supervised("raise SystemExit(3)", watch) as engine:
        await until(lambda: engine.state is ModelState.FAILED)
        assert "crashed 5 times" in engine.detail
        assert "exit code 3" in engine.detail
        assert len(watch.restarts) == 4
        with pytest.raises(errors.Unavailable, match="crashed 5 times"):
            await engine.generate(job(), Reader())


async def test_a_model_that_cannot_be_loaded_is_not_tried_again() -> None:
    code = SPEAKS.replace('wire.Loaded("a fake", 64, "", True, "")', 'wire.LoadFailed("no memory")')
    watch = Watch()
    async with supervised(code, watch) as engine:
        await until(lambda: engine.state is ModelState.FAILED)
        assert "no memory" in engine.detail
        assert watch.restarts == []


async def test_a_program_that_cannot_be_started_counts_as_crashes() -> None:
    engine = Engine(ModelName("fake"), LOAD, Watch(), program=("/nowhere/engine",))
    await engine.run()
    assert engine.state is ModelState.FAILED
    assert "could not be started" in engine.detail


@pytest.mark.parametrize(
    ("code", "words"),
    [
        pytest.param('sock.sendall(b"\\xff" * 8)', "no report", id="a length beyond all"),
        pytest.param('sock.sendall(b"\\0\\0\\0\\1\\xc1")', "no report", id="bytes that are no msgpack"),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11", id="a crash in native code"),
        pytest.param("sock.close(); time.sleep(60)", "signal 9", id="a closed socket and a process that stays"),
    ],
)
async def test_an_engine_that_goes_mad_fails_its_generations(code: str, words: str) -> None:
    async with supervised(SPEAKS + "next(arriving)\n" + code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        with pytest.raises(errors.ModelCrashed, match=words):
            await engine.generate(job(), Reader())


async def test_reports_of_a_cancelled_generation_disturb_nobody() -> None:
    code = """
for command in arriving:
    if isinstance(command, wire.Generate):
        first = first if "first" in dir() else command.id
        sock.sendall(wire.pack(wire.Accepted(command.id, 3)))
        sock.sendall(wire.pack(wire.Step((wire.Progress(first, (1,), "old"),))))
        if command.id != first:
            sock.sendall(wire.pack(wire.Step((wire.Progress(command.id, (2,), "new", "stop"),))))
"""
    async with supervised(SPEAKS + code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        reader = Reader()
        first = asyncio.create_task(engine.generate(job(), reader))
        await until(lambda: reader.chunks)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = Reader()
        end = await engine.generate(job(), second)
    assert second.text == "new"
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (3, 1)


async def test_an_engine_that_does_not_end_is_killed() -> None:
    code = SPEAKS + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(1)"
    async with supervised(code) as engine:
        await until(lambda: engine.state is ModelState.READY)
        pid = engine.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_engine_inherits_nothing_that_is_secret() -> None:
    environment = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "DATABASE_URL": "x", "OPENAI_API_KEY": "x", "NODE_KEY_FILE": "x"}
    assert set(supervisor.scrubbed(environment)) == {"PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"}
