"""Pulls models into this worker's store, for administrators, for deployments and at its start, each in a program that `aicli models pull`
runs too."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import msgspec

from services.inference import child_process
from services.inference.models import model_discovery, model_files
from services.inference.models.model_copy import ModelShare
from services.inference.models.model_store import ModelStore
from services.inference.pulled_copy import PulledCopy
from services.inference.settings import InferenceSettings
from services.inference.version_copy import Exchange, VersionCopy
from shared import context, errors, model_sources
from shared.api.inference import (
    Assignment,
    BegunFile,
    EnsuredModel,
    EnsureModel,
    ModelState,
    ModelStatus,
    PulledModel,
    PullModel,
    PullProgress,
    RemoveModel,
    SetModelConsent,
    StoreLine,
    StoreRequest,
    StoreResult,
)
from shared.api.model_copies import VERSION_SOURCE
from shared.background.deferred_memory import DeferredMemory
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.models import version_names
from shared.node import Node, lifecycle
from shared.protocol.directory import MAX_ASSIGNED
from shared.rpc import StreamCall
from shared.telemetry import logs
from shared.timing.backoff import Backoff
from shared.types import ModelName, UserId

PROGRAM = (sys.executable, "-m", "services.inference.models.store_program")
MAX_AT_ONCE = 4
QUARANTINE_SECONDS = 5.0
#: Between two reports to the caller.
REPORT_SECONDS = 0.5
#: Between two attempts to pull what MODELS_PULL names.
BACKOFF = Backoff(first_seconds=2.0, longest_seconds=300.0, jitter=0.5)
#: For urllib, which downloads.
_NETWORK = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_MAX_LINE_BYTES = 64 * 1024
_ACCEPT = "ask its owner for: aicli admin nodes accept-models ID"

log = logs.get()


@dataclass(frozen=True, slots=True)
class ModelConsent:
    """Whether administrators may pull models into the store. Its setting decides; without one, its owner does, from anywhere."""

    node: Node
    #: ALLOW_MODEL_PULLS.
    setting: bool | None

    def is_given(self) -> bool:
        # Without a ticket's choice, the machine belongs to the mesh.
        return self.node.renewal.membership.accept_models is not False if self.setting is None else self.setting

    def set(self, request: SetModelConsent) -> None:
        """Keep the owner's choice over restarts. Raises NotAllowed, and Unavailable if it counts only until the next one."""
        if not self._is_owner(request.by, is_administrator=request.is_administrator):
            raise errors.NotAllowed("only the owner of a machine decides whether administrators may put models on it", hint="ask its owner")
        if self.setting is not None:
            if self.setting is not request.accepts_models:
                raise errors.NotAllowed("ALLOW_MODEL_PULLS decides this on the machine itself", hint="change or remove that setting there")
            return
        if not self.node.renewal.remember_model_consent(accepts_models=request.accepts_models):
            raise errors.Unavailable(
                "this worker cannot write its state file, so it keeps the choice only until it restarts", hint="check its disk"
            )

    def check_remover(self, request: RemoveModel) -> None:
        """Raises NotAllowed."""
        if request.by is not None and not request.is_administrator and not self._is_owner(request.by, is_administrator=False):
            raise errors.NotAllowed("only the owner of a machine and administrators remove models from it", hint="ask its owner")

    def _is_owner(self, user: UserId, *, is_administrator: bool) -> bool:
        standing = self.node.trust.standing()
        if standing is None or not standing.owner:
            return is_administrator
        return standing.owner == str(user)


class ModelPulls:
    def __init__(self, settings: InferenceSettings, is_allowed: Callable[[], bool], node: Node) -> None:
        self._settings = settings
        self.exchange = Exchange(node.copies, shares=settings.model_share)
        self._store = ModelStore(settings.store_path, settings.model_store_quota_bytes)
        self._node = node
        self._items = BackgroundItems(DeferredMemory(), node.metrics)
        #: What the mesh has ordered, and why it is not here yet.
        self._ordered: dict[ModelName, asyncio.Task[str]] = {}
        self._is_allowed = is_allowed
        self._running = 0

    async def pull(self, request: PullModel, stream: StreamCall[PullProgress]) -> PulledModel:
        """Download a model. Raises NotAllowed if the machine's owner forbids it, Overloaded, Draining, and what the program reports."""
        self._ensure_allowed()
        with self._counted():
            return await self._pull(request, stream.send)

    async def exchange_blocks(self, is_busy: Callable[[], bool], is_paused: Callable[[], bool]) -> None:
        """Let other workers read from the store, if a gateway grants it, within the limits; forever."""
        find_whole = partial(self.exchange.find_whole, self._store)
        ModelShare(self.exchange.copies, self._node.trust, find_whole, shares=self.exchange.shares)
        await self.exchange.limit(self._settings.model_copy_bytes_per_second, is_busy, is_paused)

    async def ensure(self, request: EnsureModel) -> EnsuredModel:
        """Begin to get a model that the mesh orders, unless it is here or on its way. Raises NotAllowed and Overloaded."""
        self._ensure_allowed()
        if version_names.strip_version(request.name) in await asyncio.to_thread(self._store.refused):
            raise errors.NotAllowed(f"{request.name} was removed from this worker", hint=_ACCEPT)
        stored = await asyncio.to_thread(self._store.find, request.name)
        if stored is not None and stored.source == model_sources.redact(request.source):
            if stored.assignment is not None and stored.assignment != request.assignment:
                changed = msgspec.structs.replace(stored, assignment=request.assignment)
                await asyncio.to_thread(self._store.update, changed)
            return EnsuredModel(is_stored=True)
        if (running := self._ordered.get(request.name)) is None:
            name, goes_on = f"pull of {request.name}", context.without_deadline()
            self._ordered[request.name] = self._node.tasks.create_task(self._get(request), name=name, context=goes_on)
        elif running.done():
            return EnsuredModel(is_stored=False, problem=self._ordered.pop(request.name).result())
        return EnsuredModel(is_stored=False)

    async def quarantine(self, read_statuses: Callable[[], Iterable[ModelStatus]]) -> None:
        """Get versions again whose files were damaged, for ever. ``read_statuses``: of the models that this worker serves."""
        while True:
            await asyncio.sleep(QUARANTINE_SECONDS)
            await self._items.each(ItemKind.STORED_MODEL, read_statuses(), self._mend, lambda status: status.model_id)

    async def _mend(self, status: ModelStatus) -> None:
        if status.state is not ModelState.FAILED or not status.digest:
            return
        stored = await asyncio.to_thread(self._store.find, status.model_id)
        if stored is None or not model_discovery.is_version(stored):
            return
        # One that sees images has the digest of both. Without a manifest, nobody can tell who has signed it.
        is_whole = status.digest in (stored.digest, model_files.joined((stored.digest, stored.projector)))
        if not is_whole or await asyncio.to_thread(self._store.version, stored) is None:
            log.warning("model_damaged", model=status.model_id, digest=status.digest, expected=stored.digest)
            mend = self._store.quarantine if stored.parts == 1 else self._store.remove
            await asyncio.to_thread(mend, status.model_id)
            self._node.metrics.model_quarantines.labels(model=status.model_id).inc()

    def assigned(self) -> tuple[ModelName, ...]:
        """Return what the mesh has put here, or has ordered. Blocks."""
        coming = (name for name, order in tuple(self._ordered.items()) if not order.done())
        return tuple(dict.fromkeys((*self._store.assigned(), *coming)))[:MAX_ASSIGNED]

    def refused(self) -> tuple[ModelName, ...]:
        """Return what people removed and the mesh must not put here again. Blocks."""
        return self._store.refused()[:MAX_ASSIGNED]

    async def consent_changed(self, *, accepts_models: bool) -> None:
        """Let the mesh put here what people removed, or stop what is on its way."""
        if accepts_models:
            await asyncio.to_thread(self._store.accept, *self._store.refused())
        for name in () if accepts_models else tuple(self._ordered):
            self._ordered.pop(name).cancel()

    async def remove(self, request: RemoveModel) -> None:
        """Raises NotFound for what is not in the store, or what the mesh has not put there if it orders this."""
        running = self._ordered.pop(request.name, None)
        stored = await asyncio.to_thread(self._store.find, request.name)
        if stored is not None and request.by is None and stored.assignment is None:
            stored = None
        if stored is None and running is None:
            who = "the mesh has" if request.by is None else "nobody has"
            raise errors.NotFound(
                f"{who} put {request.name[:80]!r} into the store of this machine", hint="what its settings name is removed there"
            )
        if request.by is not None:
            await asyncio.to_thread(self._store.refuse, request.name)
        if running is not None:
            running.cancel()
        if stored is not None:
            await asyncio.to_thread(self._store.remove, request.name)

    async def _get(self, request: EnsureModel) -> str:
        """Return why it failed; empty if it did not."""
        problem = "an internal error; the worker's log has it"

        async def note_problem() -> None:
            nonlocal problem
            problem = await self._try_to_get(request)

        await self._items.attempt(ItemKind.PULL, request.name, note_problem())
        return problem

    async def _try_to_get(self, request: EnsureModel) -> str:
        """Return as ``_get``."""
        try:
            with self._counted():
                if request.source.startswith(VERSION_SOURCE):
                    version = VersionCopy(self._node.rpc, self._node.directory, self._store, self.exchange)
                    await version.get(request.name, request.source, request.assignment)
                else:
                    copy = PulledCopy(self._node.rpc, self._node.directory, self._store, self.exchange)
                    copied = await copy.get(request.name, request.source)
                    async with copy.offered(request.name, request.source, copied) as offer:
                        order = PullModel(request.source, request.name)
                        # Announcements have the progress.
                        await self._pull(order, offer.progressed, begin=offer.begin, assignment=request.assignment)
        except errors.AimeshError as error:
            log.warning("model_not_pulled", source=model_sources.redact(request.source), reason=error.message)
            return error.message
        return ""

    def _ensure_allowed(self) -> None:
        if not self._is_allowed():
            raise errors.NotAllowed("the owner of this worker does not allow pulls", hint=_ACCEPT)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._running >= MAX_AT_ONCE:
            raise errors.Overloaded(f"this worker runs {MAX_AT_ONCE} pulls already", hint="try again when one of them is done")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def pull_at_start(self, tell: Callable[[str], None]) -> None:
        """Pull what MODELS_PULL names until all of it is in the store; ``tell`` gets what a worker without models waits for."""
        left, problems, failures = self._settings.models_pull, dict[str, str](), 0
        while left:
            again = []
            for source in left:
                shown = model_sources.redact(source)

                async def report(progress: PullProgress, shown: str = shown) -> None:
                    percent = f": {100 * progress.done_bytes // progress.total_bytes} %" if progress.total_bytes else ""
                    tell("; ".join((f"pulling {shown}{percent}", *problems.values())))

                await report(PullProgress("", 0))
                try:
                    pulled = await self._pull(PullModel(source), report, by_settings=True)
                except errors.Draining:
                    return
                except errors.AimeshError as error:
                    log.warning("model_not_pulled", source=shown, reason=error.message)
                    problems[source] = f"{shown}: {error.message}"
                    # What is no model would be downloaded in vain again and again.
                    again += [] if isinstance(error, errors.BadRequest) else [source]
                else:
                    log.info("model_pulled", source=shown, model=pulled.model)
                    problems.pop(source, None)
            left, failures = tuple(again), failures + 1
            if left:
                tell("; ".join(problems.values()))
                await asyncio.sleep(BACKOFF.pause(failures))
        tell("; ".join(problems.values()) or self._hint())

    def _hint(self) -> str:
        folder = self._settings.models_dir
        return "run `aicli models pull`" + ("" if folder is None else f", or put a .gguf file into {folder}")

    async def _pull(
        self,
        request: PullModel,
        report: Callable[[PullProgress], Awaitable[None]],
        *,
        begin: Callable[[BegunFile], None] = lambda file: None,
        by_settings: bool = False,
        assignment: Assignment | None = None,
    ) -> PulledModel:
        """``begin`` gets the file when its download begins. Raises Draining, and what the program reports."""
        async with self._program(request, by_settings=by_settings, assignment=assignment) as program:
            result = await self._follow(program, report, begin)
        if result is None:
            raise errors.Internal(f"the program that changes the store ended with status {program.returncode}")
        if result.problem is not None:
            raise errors.from_problem(result.problem)
        (model,) = result.models
        return PulledModel(model.name, model.digest, model.size, result.unchanged)

    async def _follow(
        self, program: asyncio.subprocess.Process, report: Callable[[PullProgress], Awaitable[None]], begin: Callable[[BegunFile], None]
    ) -> StoreResult | None:
        """Pass the program's progress on until it ends. Raises Draining."""
        last = StoreLine()
        sent: PullProgress | None = None

        async def read() -> None:
            nonlocal last
            assert program.stdout is not None
            async for line in program.stdout:
                last = msgspec.json.decode(line, type=StoreLine)
                if last.begun is not None:
                    begin(last.begun)

        async with lifecycle.background() as tasks:
            # The program never waits for a slow reader of the progress.
            reading, draining = tasks.create_task(read()), tasks.create_task(self._node.drain_started.wait())
            while not reading.done():
                if draining.done():
                    raise errors.Draining("this worker is shutting down", hint="run the same command again; it resumes")
                if last.progress is not None and last.progress is not sent:
                    sent = last.progress
                    await report(sent)
                await asyncio.wait({reading, draining}, timeout=REPORT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return last.result

    @asynccontextmanager
    async def _program(
        self, request: PullModel, *, by_settings: bool, assignment: Assignment | None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        settings, pipe = self._settings, asyncio.subprocess.PIPE
        order = StoreRequest(
            command="pull",
            folder=str(settings.store_path.absolute()),
            quota=settings.model_store_quota or "",
            target=request.source,
            name=request.name,
            insecure=request.insecure,
            sources=settings.model_sources,
            by_settings=by_settings,
            assignment=assignment,
            parent=os.getpid(),
        )
        program = await asyncio.create_subprocess_exec(
            *PROGRAM, stdin=pipe, stdout=pipe, env=child_process.inherited(*_NETWORK), limit=_MAX_LINE_BYTES, start_new_session=True
        )
        try:
            assert program.stdin is not None
            program.stdin.write(msgspec.json.encode(order))
            program.stdin.close()
            yield program
        finally:
            # It needs no chance to clean up: what it leaves can be resumed.
            child_process.kill(program)
            await program.wait()
