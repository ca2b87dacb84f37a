"""Holds a place on a worker for one request, and tells the dispatch what became of it."""

from collections.abc import Callable
from typing import Protocol

from services.gateway.scheduling import fair_queue
from services.gateway.scheduling.candidates import Knowledge
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.discovery.directory import DirectoryEntry
from shared.telemetry import logs
from shared.types import ModelName

_log = logs.get(part="dispatch")


class Issuer(Protocol):
    """As ``dispatch.Dispatch``."""

    @property
    def clock(self) -> Callable[[], float]: ...

    @property
    def knowledge(self) -> Knowledge: ...

    def ended(self, claim: "Claim", model: ModelName, seconds: float | None) -> None:
        """The claim gives its place back; ``seconds`` says how long it had it, None where that says nothing."""

    def charge(self, wish: WorkerRequirements, cost: float) -> None:
        """What its tenant was served differs from what it was charged with."""

    def answered(self, model: ModelName, tokens: int) -> None:
        """An answer has become this long."""


class Claim:
    """A place on a worker. Use it with ``with``, for as long as the worker runs the request."""

    def __init__(
        self, issuer: Issuer, worker: DirectoryEntry, wish: WorkerRequirements, charged: float, *, waits_there: bool = False
    ) -> None:
        """``waits_there``: the worker has to end another request first."""
        self.worker = worker
        self._issuer = issuer
        self._wish = wish
        self._charged = charged
        self._held = False
        self._entered = False
        self._began_at = 0.0
        self._delivered = False
        self._failed = False
        self._told = False
        self._hold()
        self._works_since = None if waits_there else issuer.clock()
        self.has_started = not waits_there
        self._worked_seconds = 0.0

    @property
    def seconds(self) -> float:
        """How long the worker worked on it; 0 while it waits there, and where the worker failed before it gave anything."""
        if self._failed and not self._delivered:
            return 0.0
        return self._worked_seconds if self._works_since is None else self._issuer.clock() - self._works_since

    def starts(self) -> None:
        """The worker has room for it now. Safe to call twice."""
        if not self.has_started:
            self.has_started = True
            self._works_since = self._issuer.clock()

    def __enter__(self) -> "Claim":
        self._hold()
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed = self._failed or (kind is not None and issubclass(kind, errors.AimeshError))
        self.give_back()

    def give_back(self) -> None:
        """The place is free for the next. Nothing happens if it was given back already."""
        if self._held:
            self._held = False
            if self._works_since is not None:
                self._worked_seconds, self._works_since = self._issuer.clock() - self._works_since, None
            seconds = self._issuer.clock() - self._began_at if self._entered and not self._failed else None
            self._issuer.ended(self, self._wish.model, seconds)

    def delivered(self) -> None:
        """It gave tokens. Safe to call for every chunk."""
        if not self._delivered:
            self._delivered = True
            self.starts()
            self._issuer.knowledge.outliers.delivered(self.worker.node, self._wish.model)

    def failed(self, error: errors.AimeshError) -> None:
        """It ended with an error of its own: another worker may be asked. Nobody is charged for it, but for what ``tokens`` told."""
        self._failed = True
        if not self._told:
            self._charge(0.0)
        issuer, node, model = self._issuer, self.worker.node, self._wish.model
        if issuer.knowledge.outliers.failed(node, model, error, issuer.clock()):
            rest = issuer.knowledge.outliers.rest_seconds(node, model, issuer.clock())
            _log.warning("worker put aside", worker=node, model=model, seconds=rest, code=errors.code_of(error))

    def tokens(self, prompt: int, completion: int) -> None:
        """What it really took, once it is known; until then the request counts with what it may take. A prompt that is longer than it
        can be is not believed."""
        self._told = True
        self._charge(fair_queue.cost(min(max(prompt, 0), self._wish.prompt_tokens), completion))
        self._issuer.answered(self._wish.model, completion)

    def _charge(self, cost: float) -> None:
        self._issuer.charge(self._wish, cost - self._charged)
        self._charged = cost

    def _hold(self) -> None:
        if not self._held:
            self._held = True
            self._began_at = self._issuer.clock()
            self._issuer.knowledge.occupancy.begin(self.worker.node, self._wish.model)
