"""Divides jobs among servers of other programs.

Several servers with the same model share its jobs. Until a job's first piece, another server can take it over; later it can if it has the
tokens of what was sent.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from features.remote_servers import instruments
from features.remote_servers.worker import http_server_client, remote_models
from features.remote_servers.worker.remote_models import UpstreamLoad
from features.remote_servers.worker.remote_server import ModelServer
from services.inference.backend_interface import AnswerSink, Backend, CollectedChunks, Sink, VectorSink
from services.inference.jobs import GenerationJob
from shared import errors
from shared.api.embedding import Embed, Embedded
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk, ModelState, ModelStatus, Moderate, Moderated
from shared.telemetry import Metrics, logs
from shared.telemetry.metric_families import Gauge
from shared.types import Ability, ModelName

log = logs.get()

#: A server that is slower by less than this factor counts as equally fast, because measured times vary.
SAME_SPEED = 1.25
#: No server counts as slower than this: a prompt that waited for another one's prefix looks slow.
SLOWEST = 4.0

T = TypeVar("T")


class _Progress(Generic[T]):
    """Passes an answer on, with one acceptance, and says which server may take over."""

    def __init__(self, sink: AnswerSink[T]) -> None:
        self._sink = sink
        self._is_accepted = False
        #: In the middle of a send, nobody knows whether the reader gets it.
        self.is_sending = False
        self.has_sent = False

    def accept(self, prompt_tokens: int | None) -> None:
        if not self._is_accepted:
            self._is_accepted = True
            self._sink.accept(prompt_tokens)

    async def send(self, item: T) -> None:
        self.has_sent = self.is_sending = True
        await self._sink.send(item)
        self.is_sending = False

    def suits(self, server: ModelServer, digest: str) -> bool:
        """Whether the server can take over from one with a model of this digest."""
        return not self.has_sent


class _AnswerProgress(_Progress[Chunk]):
    """The progress of an answer, which another server can continue if every piece had token ids."""

    def __init__(self, sink: Sink, job: GenerationJob) -> None:
        super().__init__(sink)
        self._job = job
        self._ids: list[int] = []
        self._is_whole = True
        self._is_text = False
        self._thoughts = 0

    @property
    def job(self) -> GenerationJob:
        """What is left to do."""
        return replace(self._job, delivered=(*self._job.delivered, *self._ids)) if self._ids else self._job

    async def send(self, item: Chunk) -> None:
        self._ids += item.token_ids
        self._is_whole = self._is_whole and bool(item.token_ids)
        self._is_text = self._is_text or bool(item.text)
        self._thoughts += len(item.token_ids) if item.reasoning else 0
        await super().send(item)

    def suits(self, server: ModelServer, digest: str) -> bool:
        if not self.has_sent and not self._job.delivered:
            return True
        return self._is_whole and server.continues(self.job, digest, is_text=self._is_text)

    def total(self, end: GenerationEnd) -> GenerationEnd:
        """Count what all servers sent."""
        usage = msgspec.structs.replace(end.usage, completion_tokens=len(self._ids), reasoning_tokens=self._thoughts)
        return msgspec.structs.replace(end, usage=usage) if self._ids and self._is_whole else end


class RemoteBackend(Backend):
    """Serves the models of one or more servers."""

    def __init__(self, name: str, servers: Sequence[ModelServer], rng: random.Random | None = None) -> None:
        self.name = name
        #: In the order of the file, and then those that administrators have added, who may also remove them.
        self.servers = list(servers)
        self._rng = rng or random.Random()  # noqa: S311 - no secret
        #: Whether a server answers, and whether it refuses this worker's key or account.
        self._gauges: tuple[Gauge, ...] = ()

    def expose(self, metrics: Metrics) -> None:
        """Show the state of each server, also of those that are added."""
        self._gauges = (metrics.gauge(instruments.UP), metrics.gauge(instruments.REFUSED))
        for server in self.servers:
            self._expose(server)

    def add(self, server: ModelServer) -> None:
        self.servers.append(server)
        self._expose(server)

    def remove(self, server: ModelServer) -> None:
        self.servers.remove(server)
        for gauge in self._gauges:
            gauge.remove_by_labels({"server": server.server.source.name})

    def _expose(self, server: ModelServer) -> None:
        reads = (lambda: float(not server.models.trouble), lambda: float(server.server.is_refused))
        for gauge, read in zip(self._gauges, reads, strict=False):
            gauge.labels(server=server.server.source.name).set_function(read)

    def models(self) -> tuple[ModelStatus, ...]:
        """Return all models; servers that share one are added up."""
        found: dict[ModelName, list[ModelStatus]] = {}
        for one in self.servers:
            for status in one.models.statuses():
                found.setdefault(status.model_id, []).append(status)
        return tuple(map(_together, found.values()))[: remote_models.MAX_MODELS]

    def expected_wait_seconds(self) -> float:
        waits: dict[ModelName, float] = {}
        for one in self.servers:
            for model, seconds in one.models.expected_waits().items():
                waits[model] = min(seconds, waits.get(model, seconds))
        return max(waits.values(), default=0.0)

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        progress = _AnswerProgress(sink, job)
        end = await self._ask(job.model, lambda one, attempts: one.generate(progress.job, progress, attempts), progress)
        return progress.total(end)

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        progress = _Progress(sink)
        return await self._ask(job.model, lambda one, attempts: one.embed(job, progress, attempts), progress)

    async def moderate(self, request: Moderate) -> Moderated:
        return await self._ask(request.model, lambda one, attempts: one.moderate(request, attempts), _Progress(CollectedChunks()))

    async def _ask(self, model: ModelName, run: Callable[[ModelServer, int], Awaitable[T]], progress: _Progress[Any]) -> T:
        """Run a job on the best server, and on the next one if that fails and another can take over. Only the last retries."""
        tried: list[ModelServer] = []
        one = self._choose(model, tried, progress) or self._lead(model)
        if one is None:
            raise errors.UnknownModel(f"the server of {model} was removed", hint="`aicli models` lists what is served")
        while True:
            tried.append(one)
            try:
                async with asyncio.timeout(None) as patience:
                    with one.models.movable(partial(self._move, patience, model, tried, progress)):
                        return await run(one, http_server_client.ATTEMPTS if self._choose(model, tried, progress) is None else 1)
            except (errors.PeerError, errors.UnknownModel, TimeoutError) as failure:
                following = None if progress.is_sending else self._choose(model, tried, progress)
                if following is None and isinstance(failure, TimeoutError):
                    raise errors.Unavailable(f"{one.server.source.name} stopped answering") from failure
                if following is None:
                    raise
                log.info("upstream_replaced", model=model, server=one.server.source.name, reason=str(failure), resumed=progress.has_sent)
                one = following

    def _move(self, patience: asyncio.Timeout, model: ModelName, tried: Sequence[ModelServer], progress: _Progress[Any]) -> None:
        """Give up the wait for a server that is out if another one can answer."""
        if not progress.is_sending and patience.when() is None and self._choose(model, tried, progress) is not None:
            patience.reschedule(asyncio.get_running_loop().time())

    def _lead(self, model: ModelName) -> ModelServer | None:
        """Return the first server that has the model. It decides who may see the prompts."""
        return next((one for one in self.servers if one.models.listing(model) is not None), next(iter(self.servers), None))

    def _choose(self, model: ModelName, tried: Sequence[ModelServer], progress: _Progress[Any]) -> ModelServer | None:
        if (lead := self._lead(model)) is None:
            return None
        status, last = lead.models.status(model), (tried[-1] if tried else lead).models.listing(model)
        digest = "" if last is None else last.digest
        others = [one for one in self.servers if one not in tried and _can_replace(one.models.status(model), status)]
        usable = [one for one in others if progress.suits(one, digest)]
        return self._rng.choice(best(usable, [one.models.load(model) for one in usable])) if usable else None


def best(servers: Sequence[T], loads: Sequence[UpstreamLoad]) -> list[T]:
    """Return the servers with the shortest expected wait; one whose speed is unknown counts as the fastest."""
    fastest = min((load.token_seconds for load in loads if load.token_seconds), default=1.0)
    waits = []
    for load in loads:
        slowness = min(load.token_seconds / fastest, SLOWEST)
        waits.append((load.is_last_resort, (load.busy + 1) / load.slots * (slowness if slowness > SAME_SPEED else 1.0)))
    return [one for one, wait in zip(servers, waits, strict=True) if wait == min(waits)]


def _together(statuses: Sequence[ModelStatus]) -> ModelStatus:
    """Add up the ready servers that may stand in for the first one."""
    lead = statuses[0]
    ready = [one for one in statuses if _can_replace(one, lead)]
    if len(statuses) == 1 or not ready:
        return lead
    return msgspec.structs.replace(
        ready[0],
        context_tokens=min((one.context_tokens for one in ready if one.context_tokens), default=0),
        slots=sum(one.slots for one in ready),
        running=sum(one.running for one in ready),
        queued=sum(one.queued for one in ready),
        batch_busy=sum(one.batch_busy for one in ready),
        yields=all(one.yields for one in ready),
        rests=all(one.rests for one in ready),
        digest=lead.digest if all(one.digest == lead.digest for one in ready) else "",
        abilities=tuple(ability for ability in ready[0].abilities if all(ability in one.abilities for one in ready)),
    )


def _can_replace(status: ModelStatus | None, lead: ModelStatus | None) -> bool:
    """Whether a server may answer in place of another one: a prompt for the operator's machines never goes to a provider, and one for a
    region stays there."""
    return status is not None and lead is not None and status.state is ModelState.READY and _kind(status) == _kind(lead)


def _kind(status: ModelStatus) -> tuple[object, ...]:
    return status.provider, status.region, status.only_embeds, status.only_moderates, Ability.IMAGES in status.abilities
