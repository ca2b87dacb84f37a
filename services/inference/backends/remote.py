"""What the backends have in common whose engine is another program's HTTP server: which models it lists, and their jobs.

Such a server does not say which tokens it made, so the chunks carry text and no token ids, and the usage is its own word.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import msgspec

from services.inference.backends.backend import Watcher
from services.inference.backends.intake import Intake
from shared import errors
from shared.api.inference import ModelState, ModelStatus
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: Between two looks at what the server has; also how long it takes to notice that it is gone.
REFRESH_SECONDS = 10.0
#: A server may load a model for minutes before its first token; a dead connection shows itself earlier.
TIMEOUT = httpx.Timeout(10.0, read=300.0)
MAX_MODELS = 256

#: Asks the server for its models; raises Unavailable.
ListModels = Callable[[], Awaitable[tuple[ModelName, ...]]]


class RemoteModels:
    """The models of one server, as last listed, and the jobs of each."""

    def __init__(self, backend: str, slots: int, queue: int, watcher: Watcher) -> None:
        self._backend = backend
        self._slots = slots
        self._queue = queue
        self._watcher = watcher
        self._intakes: dict[ModelName, Intake] = {}
        #: Why the last look failed; empty when it did not.
        self._trouble = "asking for its models"

    def statuses(self) -> tuple[ModelStatus, ...]:
        return tuple(self._status(name, intake) for name, intake in self._intakes.items()) or self._nothing()

    def expected_wait_seconds(self) -> float:
        return max((intake.expected_wait_seconds() for intake in self._intakes.values()), default=0.0)

    async def watch(self, list_models: ListModels) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                self._listed((await list_models())[:MAX_MODELS])
            except errors.Unavailable as error:
                if self._trouble != error.message:
                    log.warning("backend_unavailable", backend=self._backend, reason=error.message)
                self._trouble = error.message
            self._watcher.changed()
            await asyncio.sleep(REFRESH_SECONDS)

    @asynccontextmanager
    async def job(self, model: ModelName) -> AsyncIterator[None]:
        """Counts a job; raises Overloaded, or Unavailable when the model has gone from the list."""
        intake = self._intakes.get(model)
        if intake is None:
            raise errors.Unavailable(f"{self._backend} does not have {model} now", hint="look at the server's own log")
        intake.enter()
        self._watcher.changed()
        started = time.monotonic()
        try:
            yield
        finally:
            intake.leave(time.monotonic() - started)
            self._watcher.changed()

    def _listed(self, names: tuple[ModelName, ...]) -> None:
        if self._trouble:
            log.info("backend_models", backend=self._backend, models=names)
        self._trouble = "" if names else "it has no models"
        kept = {name: self._intakes.get(name) or Intake(name, self._slots, self._queue) for name in names}
        self._intakes = kept

    def _status(self, name: ModelName, intake: Intake) -> ModelStatus:
        return ModelStatus(
            model_id=name,
            state=ModelState.LOADING if self._trouble else ModelState.READY,
            detail=self._trouble,
            backend=self._backend,
            # Not to be learnt from either API; 0 means that the server itself refuses what is too long.
            context_tokens=0,
            slots=intake.slots,
            running=intake.running,
            queued=intake.queued,
        )

    def _nothing(self) -> tuple[ModelStatus, ...]:
        """A backend without a model still says why."""
        return (ModelStatus(ModelName(self._backend), ModelState.LOADING, self._trouble, self._backend, 0, 0, 0, 0),)


@asynccontextmanager
async def client(url: str, headers: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    # trust_env off: a proxy for the internet must not see what goes to a server in the house.
    async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT, trust_env=False) as opened:
        yield opened


@asynccontextmanager
async def translated(what: str) -> AsyncIterator[None]:
    """Turn what httpx and msgspec raise for a server that fails into Unavailable."""
    try:
        yield
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise errors.Unavailable(f"{what} does not answer: {reason}", hint=f"is {what} running?", retry_after_seconds=5.0) from error
    except msgspec.MsgspecError as error:
        raise errors.Unavailable(f"{what} answered something else than its protocol: {error}") from error


async def check_status(what: str, response: httpx.Response) -> None:
    """Raises BadRequest for what the server says is the request's fault, Unavailable for the rest."""
    if response.is_success:
        return
    said = (await response.aread())[:300].decode("utf-8", "replace")
    if response.status_code in (400, 404, 413, 422):
        raise errors.BadRequest(f"{what} refuses the request: {said}")
    if response.status_code in (401, 403):
        raise errors.Unavailable(f"{what} refuses this worker's key (status {response.status_code})", hint="check OPENAI_API_KEY")
    raise errors.Unavailable(f"{what} failed with status {response.status_code}: {said}", retry_after_seconds=5.0)
