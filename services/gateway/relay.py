"""Runs a prompt on a worker and hands on what it says.

Until the first chunk another worker may take over; from then on the caller has text, and a failure is the caller's one
error. Leaving early cancels the generation on the worker.
"""

import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager

from services.gateway import mesh, routing
from shared import errors
from shared.api import embedding, inference
from shared.api.generation import Generation
from shared.api.method import End, Item, Request, StreamMethod
from shared.directory import Entry
from shared.telemetry import logs
from shared.types import ModelName, NodeId, Role

ATTEMPTS = 3
#: A request that ended two engines ends a third one, too.
MOST_CRASHES = 2
#: What another worker may do better: UnknownMethod too, which an older one says. DeadlineExceeded is not among them: there is no
#: time left.
_WORTH_ANOTHER = (
    *(errors.LinkLost, errors.NotReachable, errors.Draining, errors.Overloaded, errors.ModelCrashed, errors.Unavailable),
    errors.UnknownMethod,
)

Said = inference.Accepted | inference.Chunk | Generation
Embedding = inference.Accepted | embedding.Vectors | embedding.Embedded

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

    def generate(self, prompt: inference.ProcessPrompt, *, seconds: float) -> AsyncGenerator[Said]:
        """What the worker said of the prompt, chunks, and last the Generation. Raises the last worker's error. Close it with
        ``aclose``."""
        return self._ask(inference.process_prompt, prompt, prompt.model_config.model, seconds)

    def embed(self, texts: embedding.Embed, *, seconds: float) -> AsyncGenerator[Embedding]:
        """As ``generate``, with the vectors of texts."""
        return self._ask(embedding.embed, texts, texts.model, seconds)

    async def _ask(
        self, method: StreamMethod[Request, Item, End], request: Request, model: ModelName, seconds: float
    ) -> AsyncGenerator[inference.Accepted | Item | End]:
        ends_at = self._clock() + seconds
        failed: dict[NodeId, errors.AimeshError] = {}
        while True:
            worker = self._choose(model, failed)
            began = False
            try:
                with self._counted(worker):
                    left = ends_at - self._clock()
                    async with self._rpc.stream(method, request, to=worker.node, deadline_seconds=left) as answer:
                        async for chunk in answer:
                            if not began and isinstance(answer.accepted, inference.Accepted):
                                yield answer.accepted
                            # Who only heard what it waits for may still be served by another worker.
                            began = began or not _only_waits(chunk)
                            yield chunk
                        yield answer.end
                        return
            except _WORTH_ANOTHER as error:
                failed[worker.node] = error
                if began or len(failed) == ATTEMPTS or _crashes(failed) == MOST_CRASHES:
                    raise
                _log.warning("worker failed before its first token", worker=worker.node, code=errors.code_of(error))

    def _choose(self, model: ModelName, failed: dict[NodeId, errors.AimeshError]) -> Entry:
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


def _crashes(failed: Mapping[NodeId, errors.AimeshError]) -> int:
    return sum(isinstance(error, errors.ModelCrashed) for error in failed.values())


def _only_waits(item: object) -> bool:
    return isinstance(item, inference.Chunk | embedding.Vectors) and bool(item.waiting)
