"""Pulls models into this worker's store for administrators, each in a separate program that `aicli models pull` runs too."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from services.inference.settings import InferenceSettings
from services.inference.supervision import engine_supervisor
from shared import errors
from shared.api.inference import ModelSources, PulledModel, PullModel, PullProgress, StoreLine, StoreRequest, StoreResult
from shared.node import lifecycle
from shared.rpc import StreamCall

PROGRAM = (sys.executable, "-m", "services.inference.models.store_program")
MOST_AT_ONCE = 4
#: Between two reports to the caller.
REPORT_SECONDS = 0.5
#: For urllib, which downloads.
_NETWORK = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_MOST_LINE_BYTES = 64 * 1024


class ModelPulls:
    def __init__(self, settings: InferenceSettings, drain_started: asyncio.Event) -> None:
        self._settings = settings
        self._drain_started = drain_started
        self._running = 0

    async def pull(self, request: PullModel, stream: StreamCall[PullProgress]) -> PulledModel:
        """Download a model. Raises NotAllowed if the machine's owner forbids it, Overloaded, Draining, and what the program reports."""
        if not self._settings.allow_pulls:
            raise errors.NotAllowed("the owner of this worker does not allow pulls", hint="ask for ALLOW_MODEL_PULLS=on there")
        if self._running >= MOST_AT_ONCE:
            raise errors.Overloaded(f"this worker runs {MOST_AT_ONCE} pulls already", hint="try again when one of them is done")
        self._running += 1
        try:
            async with self._program(request) as program, lifecycle.background() as tasks:
                lines = _ProgramLines()
                reading = tasks.create_task(lines.read(program.stdout))
                draining = tasks.create_task(self._drain_started.wait())
                result = await self._follow(lines, reading, draining, stream)
        finally:
            self._running -= 1
        if result is None:
            raise errors.Internal(f"the program that changes the store ended with status {program.returncode}")
        if result.problem is not None:
            raise errors.from_problem(result.problem)
        (model,) = result.models
        return PulledModel(model.name, model.digest, model.size, result.unchanged)

    async def _follow(
        self, lines: "_ProgramLines", reading: asyncio.Task[None], draining: asyncio.Task[bool], stream: StreamCall[PullProgress]
    ) -> StoreResult | None:
        sent: PullProgress | None = None
        while not reading.done():
            if draining.done():
                raise errors.Draining("this worker is shutting down", hint="run the same command again; it resumes")
            # The program never waits for a slow reader of the stream.
            if lines.progress is not None and lines.progress is not sent:
                sent = lines.progress
                await stream.send(sent)
            await asyncio.wait({reading, draining}, timeout=REPORT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return lines.result

    @asynccontextmanager
    async def _program(self, request: PullModel) -> AsyncIterator[asyncio.subprocess.Process]:
        settings, pipe = self._settings, asyncio.subprocess.PIPE
        sources = ModelSources(hub_url=settings.hub_url, hub_token=settings.hub_token, mirrors=settings.mirrors)
        order = StoreRequest(
            command="pull",
            folder=str(settings.store_path.absolute()),
            quota=settings.model_store_quota or "",
            target=request.source,
            name=request.name,
            insecure=request.insecure,
            sources=sources,
            parent=os.getpid(),
        )
        program = await asyncio.create_subprocess_exec(
            *PROGRAM, stdin=pipe, stdout=pipe, env=engine_supervisor.inherited(*_NETWORK), limit=_MOST_LINE_BYTES
        )
        try:
            assert program.stdin is not None
            program.stdin.write(msgspec.json.encode(order))
            program.stdin.close()
            yield program
        finally:
            # It needs no chance to clean up: what it leaves can be resumed.
            engine_supervisor.kill(program)
            await program.wait()


class _ProgramLines:
    """The last progress and the result of the program."""

    def __init__(self) -> None:
        self.progress: PullProgress | None = None
        self.result: StoreResult | None = None

    async def read(self, lines: asyncio.StreamReader | None) -> None:
        assert lines is not None
        async for line in lines:
            decoded = msgspec.json.decode(line, type=StoreLine)
            self.progress, self.result = decoded.progress or self.progress, decoded.result
