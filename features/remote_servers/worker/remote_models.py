"""Tracks the models that another program's HTTP server lists, and counts their jobs."""

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from features.remote_servers.worker.rules.dialects import ServerLoad
from features.remote_servers.worker.rules.server_errors import PauseAsked
from features.remote_servers.worker.upstreams import Upstream
from services.inference.backend_interface import Watcher
from services.inference.jobs import GenerationJob
from services.inference.queue_limits import QueueLimits
from shared import addresses, errors
from shared.api.embedding import Embed
from shared.api.inference import ModelState, ModelStatus, Moderate
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: How often the list is fetched, and so how long it takes to notice that the server is gone.
REFRESH_SECONDS = 10.0
MAX_MODELS = 256
#: As many as a worker opens connections to one server.
MAX_SLOTS = 1024
MAX_NAME_CHARACTERS = 200
RESOLVE_SECONDS = 5.0
#: A server that asks for a longer pause is asked again after this time.
MAX_REST_SECONDS = 60.0
#: About when the next look at a server that is out ends.
RETRY_SECONDS = 3.0
#: After this many failed jobs in a row, other upstreams of the model are asked first for a while.
STRIKES = 3
STRUCK_SECONDS = 30.0
#: An older measurement is forgotten, or a server that once was slow would never be measured again.
SPEED_SECONDS = 60.0
#: Weight of the newest answer in the mean time.
MEAN_WEIGHT = 0.2
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
    abilities: tuple[str, ...] = ()
    #: As the server says.
    owned_by: str = ""
    #: To whom the server forwards its prompts; empty if they stay there.
    provider: str = ""
    #: Of its file; 0 if the list doesn't say.
    size_bytes: int = 0
    #: As the server writes it; empty if it doesn't say.
    quantization: str = ""


#: Gets the server's models; raises an AimeshError.
ListModels = Callable[[], Awaitable[tuple[ModelListing, ...]]]


async def find_provider(upstream: Upstream) -> str:
    """Return who gets the prompts; empty if they stay on the operator's machines."""
    is_external = await is_outside(upstream.url) if upstream.external is None else upstream.external
    return (upstream.provider or upstream.name) if is_external else ""


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
    #: Mean time of a token, divided by the requests at the server; 0 before the first answer. Failures don't count, or a server that
    #: fails fast would look fast.
    token_seconds: float = 0.0
    measured_at: float = 0.0
    #: Jobs that failed in a row.
    strikes: int = 0
    struck_at: float = 0.0

    @property
    def rests(self) -> bool:
        return self.rests_until > time.monotonic()


@dataclass(frozen=True, slots=True)
class CountedJob:
    listed: ModelListing
    started: float
    #: The requests at the server when it began, itself included.
    busy: int


@dataclass(frozen=True, slots=True)
class UpstreamLoad:
    """What the choice between the upstreams of one model looks at."""

    busy: int
    slots: int
    #: As in `_ServedModel`.
    token_seconds: float = 0.0
    #: It asked for a pause, or failed several times in a row.
    is_last_resort: bool = False


class RemoteModels:
    """The models of one server, as last listed, and their queues."""

    def __init__(self, backend: str, upstream: Upstream, slots: int, queue: int, watcher: Watcher) -> None:
        self._backend = backend
        self._upstream = upstream
        self._server = upstream.name
        self._slots = upstream.slots or slots
        #: Requests of others at the server, as it last said.
        self._others = 0
        self._queue = queue
        self._watcher = watcher
        self._provider = ""
        self._served: dict[ModelName, _ServedModel] = {}
        #: Why the last listing failed; empty if it didn't.
        self._trouble = "fetching its models"
        #: Why the server gets no requests, as `server_watch` sees it; empty if it does.
        self._out = ""
        self._list_now = asyncio.Event()
        #: Called after each look while the server is out: moves a request that still waits for its first piece.
        self._moves: set[Callable[[], None]] = set()

    @property
    def is_external(self) -> bool:
        return bool(self._provider)

    @property
    def trouble(self) -> str:
        """Why the server gets no requests; empty if it does."""
        return self._out or self._trouble

    @property
    def in_flight(self) -> int:
        return sum(served.limits.in_flight + served.limits.batch for served in self._served.values())

    def set_out(self, reason: str) -> None:
        """Take the server out, or back in if there is no ``reason``."""
        before, self._out = self._out, reason
        if reason:
            for move in tuple(self._moves):
                move()
        if bool(before) == bool(reason):
            return
        if reason:
            log.warning("backend_unavailable", backend=self._backend, server=self._server, reason=reason)
        else:
            log.info("backend_back", backend=self._backend, server=self._server)
            self._list_now.set()
            for served in self._served.values():
                served.strikes = 0
        self._watcher.changed()

    def set_slots(self, slots: int) -> None:
        """Use the number that the server says, if it does (0 if not) and its owner set none."""
        if slots and self._upstream.slots is None:
            self._slots = min(slots, MAX_SLOTS)
            for served in self._served.values():
                served.limits.slots = self._slots

    def set_load(self, load: ServerLoad | None) -> None:
        """Count the requests of others that the server reports; None if it doesn't any more."""
        before = self._slots, self._others
        self._others = 0 if load is None else max(0, load.running + load.waiting - self.in_flight)
        if load is not None:
            self.set_slots(load.slots or max(self._slots, load.running))
        if before != (self._slots, self._others):
            self._watcher.load_changed()

    @contextmanager
    def movable(self, move: Callable[[], None]) -> Iterator[None]:
        """Call ``move`` while the server is out."""
        self._moves.add(move)
        try:
            yield
        finally:
            self._moves.discard(move)

    def statuses(self) -> tuple[ModelStatus, ...]:
        if not self._served:
            return (ModelStatus(ModelName(self._server), ModelState.LOADING, self.trouble, self._backend, 0, 0, 0, 0),)
        return tuple(map(self._status, self._served.values()))

    def listings(self) -> tuple[ModelListing, ...]:
        return tuple(served.listed for served in self._served.values())

    def listing(self, model: ModelName) -> ModelListing | None:
        return self._served[model].listed if model in self._served else None

    def status(self, model: ModelName) -> ModelStatus | None:
        return self._status(self._served[model]) if model in self._served else None

    def load(self, model: ModelName) -> UpstreamLoad:
        served = self._served[model]
        is_struck = served.strikes >= STRIKES and time.monotonic() - served.struck_at < STRUCK_SECONDS
        is_known = time.monotonic() - served.measured_at < SPEED_SECONDS
        token_seconds = served.token_seconds if is_known else 0.0
        return UpstreamLoad(
            served.limits.in_flight + served.limits.batch + self._others, served.limits.slots, token_seconds, served.rests or is_struck
        )

    def measure(self, job: "CountedJob", tokens: float) -> None:
        """Note how long an answer took. It shared the server with others, who are counted at its start and now."""
        if (served := self._served.get(job.listed.name)) is not None:
            busy = (job.busy + served.limits.in_flight + served.limits.batch + 1 + self._others) / 2
            found = (time.monotonic() - job.started) / max(1.0, tokens) / max(1.0, busy)
            served.token_seconds += (found - served.token_seconds) * (MEAN_WEIGHT if served.token_seconds else 1.0)
            served.measured_at = time.monotonic()

    def expected_waits(self) -> dict[ModelName, float]:
        return {name: served.limits.expected_wait_seconds(self._others) for name, served in self._served.items()}

    async def watch(self, list_models: ListModels) -> None:
        """Refresh the list until cancelled, and at once when the server is back. A server that is out is not asked."""
        while True:
            self._list_now.clear()
            try:
                # Asked each time, because the address of a name may change.
                self._provider = await find_provider(self._upstream)
                if not self._out:
                    self._listed(await list_models())
            except errors.Overloaded:
                # A busy server still has its models.
                log.info("backend_busy", backend=self._backend, server=self._server)
            except errors.AimeshError as error:
                if self._trouble != error.message:
                    log.warning("backend_unavailable", backend=self._backend, server=self._server, reason=error.message)
                self._trouble = error.message
            self._watcher.changed()
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._list_now.wait()

    @contextmanager
    def counted(self, job: GenerationJob | Embed | Moderate, *, can_continue: bool = False) -> Iterator[CountedJob]:
        """Count a job while it runs. Raises Overloaded, or Unavailable if the model is gone, or if the job continues an answer and the
        server can't."""
        served = self._served.get(job.model)
        if served is None:
            raise errors.Unavailable(f"{self._server} does not have {job.model} now", hint="see the server's own log")
        if self._out:
            raise errors.Unavailable(f"{self._server} {self._out}", hint="see the server's own log", retry_after_seconds=RETRY_SECONDS)
        if isinstance(job, GenerationJob) and job.delivered and not can_continue:
            raise errors.Unavailable(f"{self._server} cannot continue an answer that another worker began")
        started = time.monotonic()
        if (left := served.rests_until - started) > 0:
            raise errors.Overloaded(f"{self._server} has asked for a pause of {job.model}", retry_after_seconds=left)
        is_batch = job.is_batch if isinstance(job, GenerationJob) else isinstance(job, Embed) and job.batch
        served.limits.enter(is_batch=is_batch)
        self._watcher.load_changed()
        try:
            yield CountedJob(served.listed, started, served.limits.in_flight + served.limits.batch + self._others)
            served.strikes = 0
        except PauseAsked as error:
            # Announced now and at its end, so that the requests of all gateways go elsewhere meanwhile.
            seconds = min(error.retry_after_seconds or 0.0, MAX_REST_SECONDS)
            served.rests_until = time.monotonic() + seconds
            self._watcher.changed()
            asyncio.get_running_loop().call_later(seconds + _TIMER_SLACK_SECONDS, self._watcher.changed)
            raise
        except errors.PeerError:
            served.strikes += 1
            served.struck_at = time.monotonic()
            raise
        finally:
            served.limits.leave(time.monotonic() - started, is_batch=is_batch)
            self._watcher.load_changed()

    def _listed(self, models: tuple[ModelListing, ...]) -> None:
        usable = [model for model in models if 0 < len(model.name) <= MAX_NAME_CHARACTERS and model.name.isprintable()][:MAX_MODELS]
        if self._trouble:
            log.info("backend_models", backend=self._backend, server=self._server, models=[model.name for model in usable])
        self._trouble = "" if usable else "it has no models"
        known, self._served = self._served, {}
        for model in usable:
            if model.name not in self._served:
                served = known.get(model.name) or _ServedModel(model, QueueLimits(model.name, self._slots, self._queue))
                # The same object, because running jobs may still record a pause in it.
                served.listed = model
                self._served[model.name] = served

    def _status(self, served: _ServedModel) -> ModelStatus:
        yields = self._upstream.priority
        busy = served.limits.in_flight + self._others + (0 if yields else served.limits.batch)
        return ModelStatus(
            model_id=served.listed.name,
            state=ModelState.LOADING if self.trouble else ModelState.READY,
            detail=self.trouble or (f"{self._server} has asked for a pause" if served.rests else ""),
            backend=self._backend,
            context_tokens=served.listed.context_tokens,
            slots=served.limits.slots,
            running=min(busy, served.limits.slots),
            queued=max(0, busy - served.limits.slots),
            digest=served.listed.digest,
            only_embeds=served.listed.only_embeds,
            provider=self._provider or served.listed.provider,
            is_upstream=True,
            only_moderates=served.listed.only_moderates,
            rests=served.rests,
            region=self._upstream.region,
            abilities=served.listed.abilities,
            batch_busy=served.limits.batch,
            yields=yields,
            quantization=served.listed.quantization,
            upstream_model=self._upstream.aliases.get(served.listed.name, "")[:MAX_NAME_CHARACTERS],
        )


def draw_call_id() -> str:
    """Return an id for a tool call that the server sent without one."""
    return f"call_{secrets.token_hex(12)}"
