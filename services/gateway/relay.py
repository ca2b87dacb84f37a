"""Runs a prompt on a worker and hands on what it says.

Until the first chunk another worker may take over; from then on the caller has text, and a failure is the caller's one
error. Leaving early cancels the generation on the worker.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from services.gateway import mesh
from services.gateway.dispatch import Claim, Dispatch, Waiting
from services.gateway.routing import Wish
from shared import errors
from shared.api import embedding, inference
from shared.api.generation import Generation
from shared.api.method import End, Item, Request, StreamMethod
from shared.telemetry import logs
from shared.types import NodeId

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
    """One for the gateway."""

    def __init__(self, rpc: mesh.Rpc, dispatch: Dispatch, clock: Callable[[], float] = time.monotonic) -> None:
        self._rpc = rpc
        self._dispatch = dispatch
        self._clock = clock

    async def generate(self, prompt: inference.ProcessPrompt, wish: Wish, *, seconds: float) -> AsyncGenerator[Said]:
        """What the worker said of the prompt, chunks, and last the Generation. Raises the last worker's error. Close it with
        ``aclose``."""
        async with aclosing(self._ask(inference.process_prompt, prompt, wish, seconds)) as answers:
            async for said in answers:
                yield inference.Chunk("", (), waiting=said.why) if isinstance(said, Waiting) else said

    async def embed(self, texts: embedding.Embed, wish: Wish, *, seconds: float) -> AsyncGenerator[Embedding]:
        """As ``generate``, with the vectors of texts."""
        async with aclosing(self._ask(embedding.embed, texts, wish, seconds)) as answers:
            async for said in answers:
                yield embedding.Vectors((), waiting=said.why) if isinstance(said, Waiting) else said

    async def _ask(
        self, method: StreamMethod[Request, Item, End], request: Request, wish: Wish, seconds: float
    ) -> AsyncGenerator[inference.Accepted | Waiting | Item | End]:
        ends_at = self._clock() + seconds
        failed: dict[NodeId, errors.AimeshError] = {}
        while True:
            claim: Claim | None = None
            try:
                async with aclosing(self._dispatch.find(replace(wish, not_on=frozenset(failed)))) as steps:
                    async for step in steps:
                        if isinstance(step, Waiting):
                            yield step
                        else:
                            claim = step
            except errors.NotReachable:
                if failed:
                    raise next(reversed(failed.values())) from None
                raise
            assert claim is not None  # the last step is one
            began = False
            try:
                with claim:
                    left = ends_at - self._clock()
                    async with self._rpc.stream(method, request, to=claim.worker.node, deadline_seconds=left) as answer:
                        async for chunk in answer:
                            if not began and isinstance(answer.accepted, inference.Accepted):
                                yield answer.accepted
                            # Who only heard what it waits for may still be served by another worker.
                            began = began or not _only_waits(chunk)
                            yield chunk
                        yield answer.end
                        return
            except _WORTH_ANOTHER as error:
                failed[claim.worker.node] = error
                if began or len(failed) == ATTEMPTS or _crashes(failed) == MOST_CRASHES:
                    raise
                _log.warning("worker failed before its first token", worker=claim.worker.node, code=errors.code_of(error))


def _crashes(failed: Mapping[NodeId, errors.AimeshError]) -> int:
    return sum(isinstance(error, errors.ModelCrashed) for error in failed.values())


def _only_waits(item: object) -> bool:
    return isinstance(item, inference.Chunk | embedding.Vectors) and bool(item.waiting)
