"""Runs a prompt on a worker and hands on what it says.

Until the first chunk another worker may take over; from then on the caller has text, and a failure is the caller's one
error. Leaving early cancels the generation on the worker.
"""

import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from services.gateway import mesh, routing
from shared import errors
from shared.api import inference
from shared.api.generation import Generation
from shared.directory import Entry
from shared.telemetry import logs
from shared.types import NodeId, Role

ATTEMPTS = 3
#: What another worker may do better. DeadlineExceeded is not among them: there is no time left.
_WORTH_ANOTHER = (errors.LinkLost, errors.NotReachable, errors.Draining, errors.Overloaded, errors.ModelCrashed, errors.Unavailable)

Said = inference.Accepted | inference.Chunk | Generation

_log = logs.get(part="relay")


class Relay:
    """One for the gateway; knows what it has running on which worker."""

    def __init__(self, rpc: mesh.Rpc, directory: mesh.Directory, rng: random.Random, clock: Callable[[], float] = time.monotonic) -> None:
        self._rpc = rpc
        self._directory = directory
        self._rng = rng
        self._clock = clock
        self._in_flight = routing.InFlight()

    @property
    def in_flight(self) -> int:
        return self._in_flight.total()

    async def generate(self, prompt: inference.ProcessPrompt, *, seconds: float) -> AsyncGenerator[Said]:
        """What the worker said of the prompt, chunks, and last the Generation. Raises the last worker's error. Close it with
        ``aclose``."""
        ends_at = self._clock() + seconds
        failed: dict[NodeId, errors.AimeshError] = {}
        while True:
            worker = self._choose(prompt, failed)
            began = False
            try:
                with self._counted(worker):
                    left = ends_at - self._clock()
                    async with self._rpc.stream(inference.process_prompt, prompt, to=worker.node, deadline_seconds=left) as answer:
                        async for chunk in answer:
                            if not began and isinstance(answer.accepted, inference.Accepted):
                                yield answer.accepted
                            began = True
                            yield chunk
                        yield answer.end
                        return
            except _WORTH_ANOTHER as error:
                failed[worker.node] = error
                if began or len(failed) == ATTEMPTS:
                    raise
                _log.warning("worker failed before its first token", worker=worker.node, code=errors.code_of(error))

    def _choose(self, prompt: inference.ProcessPrompt, failed: dict[NodeId, errors.AimeshError]) -> Entry:
        model = prompt.model_config.model
        worker = routing.choose(routing.candidates(model, self._directory.usable(Role.WORKER), failed.keys()), self._in_flight, self._rng)
        if worker is not None:
            return worker
        if failed:
            raise next(reversed(failed.values()))
        raise errors.NotReachable(f"no worker can run {model} now", hint="see `aicli nodes`")

    @contextmanager
    def _counted(self, worker: Entry) -> Iterator[None]:
        began_under = self._in_flight.begin(worker)
        try:
            yield
        finally:
            self._in_flight.end(began_under)
