"""The real engine with the real model: its process is confined, and its crash affects no other engine.

Each load takes a while, so there are few tests, and each checks a lot.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.inference.engine import engine_messages
from services.inference.models import model_discovery
from services.inference.supervision import engine_supervisor
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared import errors
from shared.api.inference import Chunk, ModelState
from shared.timing import restart_policy
from shared.timing.backoff import Backoff
from shared.types import ModelName
from tests.services.inference.standins import PlainChat, Reader, Watch, job, until

KILLS = 20

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="system calls are filtered on Linux")

#: The engine's own program, which inspects its process just before it opens the model.
LOOKS_AROUND = """
import json, os, pathlib, resource, socket, subprocess
from services.inference.engine import llama_model, engine_process
opened = llama_model.opened
# Before the engine may write no more.
sink = open(FOUND, "w")
def attempt(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"
def looking(*arguments):
    folder = pathlib.Path("/proc/self/fd")
    names = [name for name in os.listdir(folder) if os.path.lexists(folder / name) and int(name) != sink.fileno()]
    found_open = [os.readlink(folder / name) for name in names]
    print(json.dumps({
        "socket": attempt(lambda: socket.socket(socket.AF_INET)),
        "exec": attempt(lambda: os.execv("/bin/true", ["true"])),
        "program": attempt(lambda: subprocess.run(["/bin/true"])),
        "worker": attempt(lambda: os.kill(os.getppid(), 0)),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "stdin": os.readlink("/proc/self/fd/0"),
        "open": found_open,
        "sockets": sum(name.startswith("socket:") for name in found_open),
        "key": attempt(lambda: os.listdir(os.path.dirname(FOUND))),
        "environment": dict(os.environ),
    }), file=sink, flush=True)
    return opened(*arguments)
llama_model.opened = looking
engine_process.main()
"""


@asynccontextmanager
async def engines(
    *names: str, program: tuple[str, ...] = engine_supervisor.PROGRAM, watchdog_seconds: float = 60.0
) -> AsyncIterator[list[SupervisedEngine]]:
    load = engine_messages.LoadCommand(str(model_discovery.packaged()), 2, 512, 1, 0)
    made = [SupervisedEngine(ModelName(name), load, Watch(), PlainChat(), program, watchdog_seconds=watchdog_seconds) for name in names]
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(engine.run()) for engine in made]
        try:
            for engine in made:
                await ready(engine)
            yield made
        finally:
            for one in running:
                one.cancel()


async def ready(engine: SupervisedEngine) -> None:
    await until(lambda: engine.state is not ModelState.LOADING)
    assert engine.state is ModelState.READY, engine.detail


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "BACKOFF", Backoff(0.001, 0.001))
    monkeypatch.setattr(restart_policy, "MAX_CRASHES", KILLS + 1)


@linux
async def test_engine_process_is_confined_and_still_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    monkeypatch.setenv("DATABASE_URL", "postgres://canary")
    looks = LOOKS_AROUND.replace("FOUND", repr(str(tmp_path / "found")))
    with (tmp_path / "secret").open("w") as secret, socket.socket() as connection:
        for inherited in (secret, connection):
            os.set_inheritable(inherited.fileno(), True)
        async with engines("smollm2", program=(sys.executable, "-c", looks)) as (engine,):
            reader = Reader()
            await engine.generate(job("Say hello.", max_tokens=8), reader)
            assert engine.loaded is not None
            assert engine.loaded.unconfined == ""
    assert reader.text
    found = json.loads((tmp_path / "found").read_text())
    assert "canary" not in json.dumps(found.pop("environment"))
    # The one socket is the connection to its worker.
    assert not any(str(tmp_path) in opened for opened in found.pop("open"))
    assert found == {
        "socket": "PermissionError",
        "exec": "PermissionError",
        "program": "PermissionError",
        "worker": "PermissionError",
        "key": "PermissionError",
        "core": [0, 0],
        "stdin": "/dev/null",
        "sockets": 1,
    }


class Killing(Reader):
    """Kills the engine's process at the second piece of an answer."""

    def __init__(self, engine: SupervisedEngine) -> None:
        super().__init__()
        self._engine = engine

    async def send(self, item: Chunk) -> None:
        await super().send(item)
        if len(self.chunks) == 2:
            assert self._engine.pid is not None
            os.kill(self._engine.pid, signal.SIGKILL)


@pytest.mark.nightly("long")
async def test_twenty_kills_mid_stream_lose_no_stream_of_another_model() -> None:
    story = job("Tell me a story.", model="steady", max_tokens=48, ignore_eos=True, temperature=0.7, seed=3)
    async with engines("mortal", "steady") as (mortal, steady):
        alone = Reader()
        await steady.generate(story, alone)
        steady_pid = steady.pid

        async def keep_reading(stop: asyncio.Event) -> int:
            streams = 0
            while not stop.is_set():
                reader = Reader()
                await steady.generate(story, reader)
                assert reader.token_ids == alone.token_ids
                streams += 1
            return streams

        stop = asyncio.Event()
        reading = asyncio.create_task(keep_reading(stop))
        for kill in range(KILLS):
            await ready(mortal)
            # A different request each time: the same one would be refused as poison.
            with pytest.raises(errors.ModelCrashed, match="signal 9"):
                await mortal.generate(job(f"Count from {kill}.", model="mortal", max_tokens=64, ignore_eos=True), Killing(mortal))
        await ready(mortal)
        last = Reader()
        await mortal.generate(job("Say hello.", model="mortal", max_tokens=4), last)
        stop.set()
        whole = await reading
        assert steady.pid == steady_pid
    assert last.text
    assert whole >= 2


async def test_hung_engine_is_killed_and_the_next_one_answers() -> None:
    class Stopping(Reader):
        async def send(self, item: Chunk) -> None:
            await super().send(item)
            if len(self.chunks) == 2:
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGSTOP)

    async with engines("smollm2", watchdog_seconds=3.0) as (engine,):
        pid = engine.pid
        with pytest.raises(errors.ModelCrashed, match="hung"):
            await engine.generate(job("Count to a hundred.", max_tokens=64, ignore_eos=True), Stopping())
        await ready(engine)
        assert engine.pid != pid
        reader = Reader()
        await engine.generate(job("Say hello.", max_tokens=4), reader)
    assert reader.text
