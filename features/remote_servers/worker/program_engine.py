"""Runs a model in another inference server, such as vLLM: starts it on a free port, watches it, and restarts it like an engine."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import msgspec

from features.remote_servers.worker import openai
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.upstreams import Dialect, Upstream
from services.inference import child_process
from services.inference.backend_interface import Sink, VectorSink, Watcher
from services.inference.chat.model_chat import ModelChat
from services.inference.engine import engine_messages
from services.inference.jobs import GenerationJob
from services.inference.models.catalog import CatalogEntry
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared import errors
from shared.api.embedding import Embed, Embedded
from shared.api.generation import GenerationEnd
from shared.api.inference import ModelState

#: How often the program is looked at; `ServerWatch` asks its health.
LOOK_SECONDS = 0.2
#: After this time without an answer, a program that was ready is restarted.
HUNG_SECONDS = 60.0
#: From SIGTERM to SIGKILL.
STOP_SECONDS = 10.0
#: Variables for programs, which may hold paths but no secrets.
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "VIRTUAL_ENV", "XDG_CACHE_HOME")
#: Runs the command. When this worker ends in any way, so does the pipe, and the program's whole group is killed.
GUARD = 'exec 3<&0 </dev/null; (read -r _ <&3; kill -KILL 0) & exec 3<&-; exec "$@"'


class ProgramEngine(SupervisedEngine):
    """Like `SupervisedEngine`, for a model with a program."""

    def __init__(self, entry: CatalogEntry, load: engine_messages.LoadCommand, queue: int, watcher: Watcher, chat: ModelChat) -> None:
        super().__init__(entry.name, load, watcher, chat)
        self._entry = entry
        self._queue = queue
        self._server: RemoteBackend | None = None

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        server = self._ready_server()
        return await server.generate(replace(job, model=server.models()[0].model_id), sink)

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        server = self._ready_server()
        return await server.embed(msgspec.structs.replace(job, model=server.models()[0].model_id), sink)

    def _ready_server(self) -> RemoteBackend:
        if self._server is None:
            raise errors.Unavailable(f"{self._model} is not ready: {self.detail}", hint="try again in a moment", retry_after_seconds=1.0)
        return self._server

    async def _run_process(self) -> str:
        port = _free_port()
        try:
            async with self._started(port) as process:
                return await self._serve(process, port)
        except OSError as error:
            return f"could not be started: {error}"
        finally:
            self._server = None

    async def _serve(self, process: asyncio.subprocess.Process, port: int) -> str:
        """Offer the program's server while it runs; return why it ended."""
        program, clock = self._entry.program, asyncio.get_running_loop().time
        assert program is not None
        url, dialect = f"http://127.0.0.1:{port}/v1", None if program.dialect is None else Dialect(program.dialect)
        upstream = Upstream(name=self._model, url=url, dialect=dialect, external=False, digest=self._entry.digest or "")
        limit, heard = program.ready_seconds, clock()
        async with openai.opened_all((upstream,), self._load.slots, self._queue, self._watcher) as server:
            while process.returncode is None:
                await asyncio.sleep(LOOK_SECONDS)
                if all(status.state is ModelState.READY for status in server.models()):
                    heard, limit, self._server = clock(), HUNG_SECONDS, server
                    if self.state is not ModelState.READY:
                        self._set_state(ModelState.READY, "")
                elif clock() - heard > limit:
                    return f"was not ready for {limit:g} s"
        return child_process.reason_of_end(process.returncode)

    @asynccontextmanager
    async def _started(self, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run the program in a process group, which ends with the block."""
        assert self._entry.program is not None
        words = [word.replace("{port}", str(port)) for word in self._entry.program.command]
        environment = child_process.inherited(*VARIABLES)
        del environment["PYTHONPATH"]
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", GUARD, words[0], *words), stdin=asyncio.subprocess.PIPE, stdout=2, env=environment, start_new_session=True
        )
        self.pid = process.pid
        try:
            yield process
        finally:
            self.pid = None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_SECONDS):
                        await process.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
