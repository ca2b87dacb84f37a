"""Holds a slot on a worker for one request, if it takes one, and reports what happens to it."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling import fair_queue
from services.gateway.scheduling.preemption import Preemptible
from shared import errors
from shared.protocol.directory import DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId, TenantId


@dataclass(frozen=True, slots=True)
class Delivered:
    """The worker has sent its first tokens."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: errors.AimeshError


@dataclass(frozen=True, slots=True)
class Charged:
    """The tenant's charge has changed by ``cost``."""

    cost: float
    #: None if the length of the answer isn't known.
    answer_tokens: int | None


@dataclass(frozen=True, slots=True)
class Released:
    """The slot is free."""

    #: How long the claim lasted; None if that isn't representative.
    seconds: float | None


ClaimEvent = Delivered | Failed | Charged | Released


class Claim:
    """A slot on a worker. Use it with ``with`` while the worker runs the request."""

    def __init__(
        self,
        worker: DirectoryEntry,
        offer: ModelOffer,
        requirements: WorkerRequirements,
        charged: float,
        *,
        report: Callable[["Claim", ClaimEvent], None],
        clock: Callable[[], float],
        waits_there: bool = False,
        waited_seconds: float = 0.0,
    ) -> None:
        self.worker = worker
        #: What the worker announced about the model.
        self.offer = offer
        self.requirements = requirements
        #: Who gets the prompt; None if it stays on the operator's machines.
        self.provider = offer.provider or None
        #: The worker must finish another request first.
        self.waits_there = waits_there
        #: The worker has accepted the request, and read its prompt.
        self.was_accepted = False
        #: How long the request waited for a worker's start, which doesn't count into its deadline.
        self.start_wait_seconds = 0.0
        #: What runs on the worker; None before and after that.
        self.call: Preemptible | None = None
        self._report = report
        self._clock = clock
        self._charged = charged
        self._is_released = False
        self._entered = False
        self._began_at = clock()
        #: When the request began to wait.
        self.asked_at = self._began_at - waited_seconds
        self.has_delivered = False
        #: How long the worker computed before it delivered anything.
        self.prompt_seconds = 0.0
        self._failed = self._is_preempted = False
        self._has_token_counts = False
        self._works_since = None if self.waits_there else self._began_at
        self.has_started = not self.waits_there
        self._worked_seconds = 0.0
        #: As a worker says that made its call wait for live ones.
        self.most_seconds = math.inf

    @property
    def tenant(self) -> TenantId:
        """Return the tenant whose share of the slots it uses."""
        return self.requirements.limited_as

    @property
    def seconds(self) -> float:
        """Return how long the worker computed; 0 while the call waits there, and if it failed before it delivered anything."""
        if self._failed and not self.has_delivered:
            return 0.0
        worked = self._worked_seconds if self._works_since is None else self._clock() - self._works_since
        return min(worked, self.most_seconds)

    def mark_started(self) -> None:
        """Record that the worker has started the call, for which it had no free slot before."""
        self.has_started = True
        self._works_since = self._clock()

    def __enter__(self) -> "Claim":
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed = self._failed or (kind is not None and issubclass(kind, errors.AimeshError))
        self.release()

    def release(self) -> None:
        """Release the slot. Safe to call twice."""
        if not self._is_released:
            seconds = self._clock() - self._began_at if self._entered and not self._failed else None
            self._end_work()
            if self.requirements.takes_slot:
                self._report(self, Released(seconds))

    def preempt(self) -> None:
        """End the call at its worker. The dispatch reassigns the slot."""
        assert self.call is not None
        self._is_preempted = True
        self.call.preempt()
        self._end_work()

    def _end_work(self) -> None:
        self._is_released = True
        if self._works_since is not None:
            self._worked_seconds, self._works_since = self._clock() - self._works_since, None

    def record_delivery(self) -> None:
        """Record the worker's first tokens."""
        self.has_delivered = True
        if not self.has_started:
            self.mark_started()
        self.prompt_seconds = self.seconds
        self._report(self, Delivered())

    def record_failure(self, error: errors.AimeshError) -> None:
        """Record the worker's failure. The tenant is charged only for what ``record_tokens`` reported."""
        self._failed = True
        if not self._has_token_counts:
            self._charge(0.0)
        self._report(self, Failed(error))

    def record_tokens(self, prompt: int, completion: int) -> None:
        """Replace the estimated cost by the actual one. A prompt longer than the request's bound is not believed. A preempted answer keeps
        the estimate: else its tenant would be next, and take back the slot."""
        self._has_token_counts = True
        actual = fair_queue.cost(min(max(prompt, 0), self.requirements.prompt_tokens), completion)
        if self._is_preempted:
            self._charge(max(actual, self._charged))
        else:
            self._charge(actual, completion)

    def _charge(self, cost: float, answer_tokens: int | None = None) -> None:
        self._report(self, Charged(cost - self._charged, answer_tokens))
        self._charged = cost


class ClaimsWithoutSlot:
    """Tracks this gateway's calls that wait for a slot at a worker; this wait is not billed.

    When a call with a slot ends, the call that waited longest gets it. A call that delivers tokens has a slot, even if another gateway's
    call freed it.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[NodeId, ModelName], deque[Claim]] = {}

    def __len__(self) -> int:
        """Return the number of workers and models with such calls."""
        return len(self._waiting)

    def add(self, node: NodeId, model: ModelName, claim: Claim) -> None:
        self._waiting.setdefault((node, model), deque()).append(claim)

    def release(self, node: NodeId, model: ModelName, claim: Claim) -> None:
        waiting = self._waiting.get((node, model))
        if waiting is None:
            return
        had_slot = claim.has_started
        if claim in waiting:
            waiting.remove(claim)
        while had_slot and waiting:
            next_claim = waiting.popleft()
            had_slot = next_claim.has_started
            if not had_slot:
                next_claim.mark_started()
        if not waiting:
            del self._waiting[node, model]
