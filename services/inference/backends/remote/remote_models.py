"""Tracks the models that another program's HTTP server lists, and counts their jobs.

Such servers don't report token ids, so chunks only have text, and the usage is the server's.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from services.inference.backend_interface import Watcher
from services.inference.backends.remote.server_errors import PauseAsked
from services.inference.jobs import EmbeddingJob, GenerationJob
from services.inference.queue_limits import QueueLimits
from shared import addresses, errors
from shared.api.inference import ModelState, ModelStatus, Moderate
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: How often the list is fetched, and so how long it takes to notice that the server is gone.
REFRESH_SECONDS = 10.0
MAX_MODELS = 256
MAX_NAME_CHARACTERS = 200
RESOLVE_SECONDS = 5.0
#: A server that asks for a longer pause is asked again after this time.
MAX_REST_SECONDS = 60.0
#: How early a timer may fire by the clock.
_TIMER_SLACK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ModelListing:
    """A model of the server."""

    #: The name under which this worker offers it.
    name: ModelName
    own_name: str
    digest: str = ""
    #: 0 if unknown; the server itself then refuses prompts that are too long.
    context_tokens: int = 0
    only_embeds: bool = False
    only_moderates: bool = False


#: Gets the server's models; raises an AimeshError.
ListModels = Callable[[], Awaitable[tuple[ModelListing, ...]]]


@dataclass(frozen=True, slots=True)
class UpstreamPlace:
    """Where a server is, and so whether it belongs to a provider."""

    url: str
    #: Who gets the prompts, if it is external.
    provider: str
    #: None: by its address.
    external: bool | None = None
    #: A label; it decides nothing.
    region: str = ""

    async def find_provider(self) -> str:
        """Return the provider; empty if prompts stay on the operator's machines."""
        return self.provider if self.external or (self.external is None and await is_outside(self.url)) else ""


async def is_outside(url: str) -> bool:
    """Return whether requests to this URL may leave the operator's network: some address of its host is public, or unknown."""
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return True
    return any(addresses.is_public(str(address[0])) for *_, address in found)


@dataclass(slots=True)
class _ServedModel:
    listed: ModelListing
    limits: QueueLimits
    #: Until when the server asked for a pause, by the monotonic clock.
    rests_until: float = 0.0


class RemoteModels:
    """The models of one server, as last listed, and their queues."""

    def __init__(self, backend: str, slots: int, queue: int, watcher: Watcher, *, place: UpstreamPlace, server: str = "") -> None:
        self._backend = backend
        self._server = server or backend
        self._slots = slots
        self._queue = queue
        self._watcher = watcher
        self._place = place
        self._provider = ""
        self._served: dict[ModelName, _ServedModel] = {}
        #: Why the last listing failed; empty if it didn't.
        self._trouble = "fetching its models"

    def statuses(self) -> tuple[ModelStatus, ...]:
        return tuple(self._status(served) for served in self._served.values()) or self._nothing()

    def has(self, model: ModelName) -> bool:
        return model in self._served

    def expected_wait_seconds(self) -> float:
        return max((served.limits.expected_wait_seconds() for served in self._served.values()), default=0.0)

    async def watch(self, list_models: ListModels) -> None:
        """Refresh the list until cancelled."""
        while True:
            try:
                # Asked each time, because the address of a name may change.
                self._provider = await self._place.find_provider()
                self._listed(await list_models())
            except errors.Overloaded:
                # A busy server still has its models.
                log.info("backend_busy", backend=self._backend, server=self._server)
            except errors.AimeshError as error:
                if self._trouble != error.message:
                    log.warning("backend_unavailable", backend=self._backend, server=self._server, reason=error.message)
                self._trouble = error.message
            self._watcher.changed()
            await asyncio.sleep(REFRESH_SECONDS)

    @contextmanager
    def counted(self, job: GenerationJob | EmbeddingJob | Moderate) -> Iterator[ModelListing]:
        """Count a job while it runs. Raises Overloaded, or Unavailable if the model is gone or the job continues an answer."""
        served = self._served.get(job.model)
        if served is None:
            raise errors.Unavailable(f"{self._server} does not have {job.model} now", hint="see the server's own log")
        if isinstance(job, GenerationJob) and job.delivered:
            raise errors.Unavailable(f"{self._server} cannot continue an answer that another worker began")
        started = time.monotonic()
        if (left := served.rests_until - started) > 0:
            raise errors.Overloaded(f"{self._server} has asked for a pause of {job.model}", retry_after_seconds=left)
        served.limits.enter()
        self._watcher.changed()
        try:
            yield served.listed
        except PauseAsked as error:
            # Announced below and at its end, so that the requests of all gateways go elsewhere meanwhile.
            seconds = min(error.retry_after_seconds or 0.0, MAX_REST_SECONDS)
            served.rests_until = time.monotonic() + seconds
            asyncio.get_running_loop().call_later(seconds + _TIMER_SLACK_SECONDS, self._watcher.changed)
            raise
        finally:
            served.limits.leave(time.monotonic() - started)
            self._watcher.changed()

    def _listed(self, models: tuple[ModelListing, ...]) -> None:
        usable = [model for model in models if 0 < len(model.name) <= MAX_NAME_CHARACTERS and model.name.isprintable()][:MAX_MODELS]
        if self._trouble:
            log.info("backend_models", backend=self._backend, server=self._server, models=[model.name for model in usable])
        self._trouble = "" if usable else "it has no models"
        known = self._served
        self._served = {}
        for model in usable:
            before = known.get(model.name)
            if before is None:
                before = _ServedModel(model, QueueLimits(model.name, self._slots, self._queue))
            if model.name not in self._served:
                # The same object, because running jobs may still record a pause in it.
                before.listed = model
                self._served[model.name] = before

    def _status(self, served: _ServedModel) -> ModelStatus:
        rests = served.rests_until > time.monotonic()
        return ModelStatus(
            model_id=served.listed.name,
            state=ModelState.LOADING if self._trouble else ModelState.READY,
            detail=self._trouble or (f"{self._server} has asked for a pause" if rests else ""),
            backend=self._backend,
            context_tokens=served.listed.context_tokens,
            slots=served.limits.slots,
            running=served.limits.running,
            queued=served.limits.queued,
            digest=served.listed.digest,
            only_embeds=served.listed.only_embeds,
            provider=self._provider,
            only_moderates=served.listed.only_moderates,
            rests=rests,
            region=self._place.region,
        )

    def _nothing(self) -> tuple[ModelStatus, ...]:
        return (ModelStatus(ModelName(self._server), ModelState.LOADING, self._trouble, self._backend, 0, 0, 0, 0),)


def draw_call_id() -> str:
    """Return an id for a tool call that the server sent without one."""
    return f"call_{secrets.token_hex(12)}"
