"""What the backends have in common whose engine is another program's HTTP server: which models it lists, and their jobs.

Such a server does not say which tokens it made, so the chunks carry text and no token ids, and the usage is its own word.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from services.inference.jobs.backend_interface import Watcher
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.jobs.generation_job import GenerationJob
from services.inference.jobs.queue_limits import QueueLimits
from shared import errors
from shared.api.inference import ModelState, ModelStatus
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: Between two looks at what the server has; also how long it takes to notice that it is gone.
REFRESH_SECONDS = 10.0
MAX_MODELS = 256
#: Longer names are an attack on the announcement rather than models.
MAX_NAME_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Listed:
    """A model of the server."""

    #: What it is offered as.
    name: ModelName
    #: What the server calls it.
    own_name: str
    digest: str = ""
    #: 0 where the server does not say; then it refuses itself what is too long.
    context_tokens: int = 0
    #: It gives vectors and no answers.
    only_embeds: bool = False


#: Asks the server for its models; raises an AimeshError.
ListModels = Callable[[], Awaitable[tuple[Listed, ...]]]


@dataclass(slots=True)
class _ServedModel:
    listed: Listed
    intake: QueueLimits


class RemoteModels:
    """The models of one server, as last listed, and the jobs of each."""

    def __init__(self, backend: str, slots: int, queue: int, watcher: Watcher, *, server: str = "") -> None:
        self._backend = backend
        #: The server's name, where a backend has several.
        self._server = server or backend
        self._slots = slots
        self._queue = queue
        self._watcher = watcher
        self._served: dict[ModelName, _ServedModel] = {}
        #: Why the last look failed; empty when it did not.
        self._trouble = "asking for its models"

    def statuses(self) -> tuple[ModelStatus, ...]:
        return tuple(self._status(served) for served in self._served.values()) or self._nothing()

    def has(self, model: ModelName) -> bool:
        return model in self._served

    def expected_wait_seconds(self) -> float:
        return max((served.intake.expected_wait_seconds() for served in self._served.values()), default=0.0)

    async def watch(self, list_models: ListModels) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                self._listed(await list_models())
            except errors.Overloaded:
                # It is there and has too much to do, which is no reason to offer its models no more.
                log.info("backend_busy", backend=self._backend, server=self._server)
            except errors.AimeshError as error:
                if self._trouble != error.message:
                    log.warning("backend_unavailable", backend=self._backend, server=self._server, reason=error.message)
                self._trouble = error.message
            self._watcher.changed()
            await asyncio.sleep(REFRESH_SECONDS)

    @contextmanager
    def counted(self, job: GenerationJob | EmbeddingJob) -> Iterator[Listed]:
        """Counts a job; raises Overloaded, or Unavailable when the model has gone from the list or the job is no whole one."""
        served = self._served.get(job.model)
        if served is None:
            raise errors.Unavailable(f"{self._server} does not have {job.model} now", hint="look at the server's own log")
        if isinstance(job, GenerationJob) and job.delivered:
            raise errors.Unavailable(f"{self._server} cannot go on with an answer that another worker began")
        served.intake.enter()
        self._watcher.changed()
        started = time.monotonic()
        try:
            yield served.listed
        finally:
            served.intake.leave(time.monotonic() - started)
            self._watcher.changed()

    def _listed(self, models: tuple[Listed, ...]) -> None:
        usable = [model for model in models if 0 < len(model.name) <= MAX_NAME_CHARACTERS and model.name.isprintable()][:MAX_MODELS]
        if self._trouble:
            log.info("backend_models", backend=self._backend, server=self._server, models=[model.name for model in usable])
        self._trouble = "" if usable else "it has no models"
        known = self._served
        self._served = {}
        for model in usable:
            before = known.get(model.name)
            intake = QueueLimits(model.name, self._slots, self._queue) if before is None else before.intake
            self._served.setdefault(model.name, _ServedModel(model, intake))

    def _status(self, served: _ServedModel) -> ModelStatus:
        return ModelStatus(
            model_id=served.listed.name,
            state=ModelState.LOADING if self._trouble else ModelState.READY,
            detail=self._trouble,
            backend=self._backend,
            context_tokens=served.listed.context_tokens,
            slots=served.intake.slots,
            running=served.intake.running,
            queued=served.intake.queued,
            digest=served.listed.digest,
            only_embeds=served.listed.only_embeds,
        )

    def _nothing(self) -> tuple[ModelStatus, ...]:
        """A server without a model still says why."""
        return (ModelStatus(ModelName(self._server), ModelState.LOADING, self._trouble, self._backend, 0, 0, 0, 0),)
