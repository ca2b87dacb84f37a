"""The `llama` backend: GGUF files in engine processes of our own, one process for each model."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from services.inference.backends.backend import Sink, Watcher
from services.inference.backends.intake import Intake
from services.inference.backends.supervisor import Engine
from services.inference.engine import wire
from services.inference.jobs import Job
from services.inference.models import ModelFile
from shared.api.generation import Generation
from shared.api.inference import ModelStatus
from shared.types import ModelName


class _Served:
    """One model: its file, its engine and its jobs."""

    def __init__(self, file: ModelFile, load: wire.Load, queue: int, watcher: Watcher) -> None:
        self.file = file
        self.engine = Engine(file.name, load, watcher)
        self.intake = Intake(file.name, load.slots, queue)
        #: Empty until the whole file has been read.
        self.digest = ""

    def status(self) -> ModelStatus:
        loaded = self.engine.loaded
        return ModelStatus(
            model_id=self.file.name,
            state=self.engine.state,
            detail=self.engine.detail,
            backend=LlamaBackend.name,
            context_tokens=0 if loaded is None else loaded.context_tokens,
            slots=self.intake.slots,
            running=self.intake.running,
            queued=self.intake.queued,
            digest=self.digest,
        )


class LlamaBackend:
    name = "llama"

    def __init__(self, served: list[_Served], watcher: Watcher) -> None:
        self._served: dict[ModelName, _Served] = {one.file.name: one for one in served}
        self._watcher = watcher

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(one.status() for one in self._served.values())

    def expected_wait_seconds(self) -> float:
        return max(one.intake.expected_wait_seconds() for one in self._served.values())

    def engine_pid(self, model: ModelName) -> int | None:
        """The process that runs ``model`` now, for whoever looks after the machine."""
        return self._served[model].engine.pid

    async def generate(self, job: Job, sink: Sink) -> Generation:
        served = self._served[job.model]
        served.intake.enter()
        self._watcher.changed()
        started = time.monotonic()
        try:
            return await served.engine.generate(job, sink)
        finally:
            served.intake.leave(time.monotonic() - started)
            self._watcher.changed()


@asynccontextmanager
async def opened(files: tuple[ModelFile, ...], options: wire.Load, queue: int, watcher: Watcher) -> AsyncIterator[LlamaBackend]:
    """Start an engine for each file; ``options`` is what all of them are loaded with. Ends their processes on leaving."""
    served = [_Served(file, _load(file, options), queue, watcher) for file in files]
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(one.engine.run(), name=f"engine {one.file.name}") for one in served]
        background += [tasks.create_task(_digest(one, watcher), name=f"digest {one.file.name}") for one in served]
        try:
            yield LlamaBackend(served, watcher)
        finally:
            for task in background:
                task.cancel()


def _load(file: ModelFile, options: wire.Load) -> wire.Load:
    return wire.Load(str(file.path), options.slots, options.context_tokens, options.threads, options.gpu_layers)


async def _digest(served: _Served, watcher: Watcher) -> None:
    # Not to be waited for: a model of 40 GB takes minutes to read, and is served meanwhile.
    served.digest = await asyncio.to_thread(_sha256, served.file.path)
    watcher.changed()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
