"""Programs as engines: started, watched, restarted and stopped, each with its process group."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.remote_servers.worker import program_engine, server_watch
from features.remote_servers.worker.program_engine import ProgramEngine
from features.remote_servers.worker.upstreams import Dialect
from services.inference.backends import llama
from services.inference.backends.llama import LlamaBackend
from services.inference.engine import engine_messages
from services.inference.models import memory
from services.inference.models.catalog import Catalog, CatalogEntry, ModelProgram
from shared import errors
from shared.api.inference import ModelState
from shared.timing import restart_policy
from shared.timing.backoff import Backoff
from shared.types import ModelName
from tests.features.remote_servers.worker.fake_program import ANSWER
from tests.services.inference.standins import Reader, Watch, engine_pid, job, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process groups are tested on Linux")
ROOT = Path(__file__).parents[4]


def entry(command: tuple[str, ...], ready_seconds: float = 60.0, **more: Any) -> CatalogEntry:
    made = ModelProgram(command, Dialect.LLAMA_CPP, ready_seconds)
    return CatalogEntry(name=ModelName("big"), file=Path(command[0]), program=made, memory_bytes=1000, **more)


def fake(file: Path) -> tuple[str, ...]:
    # The program gets no PYTHONPATH.
    run = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import asyncio, pathlib; "
        "from tests.features.remote_servers.worker import fake_program as f; "
    )
    return (sys.executable, "-c", f"{run}asyncio.run(f.main(int(sys.argv[1]), pathlib.Path({str(file)!r})))", "{port}")


@asynccontextmanager
async def worker(*entries: CatalogEntry, watch: Watch | None = None) -> AsyncIterator[LlamaBackend]:
    load = engine_messages.LoadCommand("", 4, None, 1, 0)
    budget, programs = memory.MemoryBudget(2500, "test"), replace(llama.PROGRAMS, start_program=ProgramEngine)
    async with llama.opened(Catalog(entries), load, 8, budget, watch or Watch(), programs=programs) as backend:
        yield backend


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def facts_of(file: Path) -> Any:
    return json.loads(file.read_text())


async def test_a_program_serves_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_TICKET", "secret")
    monkeypatch.setenv("HF_HOME", "/models")
    file = tmp_path / "facts"
    async with worker(entry(fake(file), digest="ab" * 32)) as backend:
        reader = Reader()
        await backend.generate(job("hi", model="big", max_tokens=50), reader)
        assert reader.text == ANSWER
        (status,) = backend.models()
        assert (status.state, status.digest, status.memory_bytes) == (ModelState.READY, "ab" * 32, 1000)
        facts, pid = facts_of(file), engine_pid(backend, ModelName("big"))
        assert pid is not None
        assert os.getpgid(pid) == pid
        assert os.getpgid(facts["child"]) == pid
        assert "NODE_TICKET" not in facts["environment"]
        assert facts["environment"]["HF_HOME"] == "/models"
        await backend.unload(ModelName("big"))
        await until(lambda: not is_running(pid) and not is_running(facts["child"]))
        assert backend.models()[0].state is ModelState.UNLOADED


async def test_a_program_that_dies_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "BACKOFF", Backoff(first_seconds=0.01, longest_seconds=0.01))
    file = tmp_path / "facts"
    async with worker(entry(fake(file), preload=True)) as backend:
        await until(lambda: backend.models()[0].state is ModelState.READY)
        pid, child = engine_pid(backend, ModelName("big")), facts_of(file)["child"]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: backend.models()[0].state is ModelState.LOADING)
        assert "was killed by signal 9" in backend.models()[0].detail
        with pytest.raises(errors.Unavailable, match="is not ready"):
            await backend.generate(job("hi", model="big"), Reader())
        await until(lambda: backend.models()[0].state is ModelState.READY)
        await backend.generate(job("hi", model="big", max_tokens=50), Reader())
        assert not is_running(child)


async def test_a_program_that_hangs_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_engine, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(program_engine, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(server_watch, "LOOK_SECONDS", 0.1)
    watch = Watch()
    async with worker(entry(fake(tmp_path / "facts"), preload=True), watch=watch) as backend:
        await until(lambda: backend.models()[0].state is ModelState.READY)
        pid = engine_pid(backend, ModelName("big"))
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: watch.restarts and backend.models()[0].state is ModelState.READY)
        assert not is_running(pid)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        pytest.param(("sleep", "1000", "{port}"), "was not ready for 0.3 s", id="it never answers"),
        pytest.param(("false", "{port}"), "ended with exit code 1", id="it ends"),
        pytest.param(("/no/such/program", "{port}"), "ended with exit code 127", id="it was removed"),
    ],
)
async def test_a_program_that_does_not_start(command: tuple[str, ...], reason: str) -> None:
    watch = Watch()
    async with worker(entry(command, ready_seconds=0.3, preload=True), watch=watch) as backend:
        await until(lambda: reason in backend.models()[0].detail)
        assert watch.restarts


async def test_two_programs_share_the_memory(tmp_path: Path) -> None:
    """The first program is stopped for the second, of which two replicas fit."""
    first = entry(fake(tmp_path / "first"))
    second = replace(entry(fake(tmp_path / "second")), name=ModelName("other"), replicas=4)
    async with worker(first, second) as backend:
        await backend.generate(job("hi", model="big", max_tokens=50), Reader())
        pid = engine_pid(backend, ModelName("big"))
        assert pid is not None
        await backend.generate(job("hi", model="other", max_tokens=50), Reader())
        assert not is_running(pid)
        assert [status.memory_bytes for status in backend.models()] == [1000, 2000]


async def test_a_program_ends_with_its_worker(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from tests.features.remote_servers.worker.test_program_engine import entry, fake, worker
async def main():
    async with worker(entry(fake(Path(sys.argv[1])), preload=True)):
        await asyncio.Event().wait()
asyncio.run(main())
"""
    file = tmp_path / "facts"
    lonely = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(file), cwd=ROOT)
    try:
        await until(file.exists)
        await until(lambda: file.read_text().endswith("}"))
        child = facts_of(file)["child"]
        group = os.getpgid(child)
        lonely.kill()
        await until(lambda: not is_running(child) and not is_running(group))
    finally:
        if lonely.returncode is None:
            lonely.kill()
        await lonely.wait()
