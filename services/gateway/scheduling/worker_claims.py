"""Holds a slot on a worker for one request, if it takes one, and reports its outcome to the dispatch."""

from typing import TYPE_CHECKING

from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling import fair_queue
from services.gateway.scheduling.preemption import Preemptible
from services.gateway.scheduling.worker_choice import Candidate
from shared import errors
from shared.telemetry import logs
from shared.types import TenantId

if TYPE_CHECKING:
    from services.gateway.scheduling.dispatch import Dispatch

_log = logs.get(part="dispatch")


class Claim:
    """A slot on a worker. Use it with ``with`` while the worker runs the request."""

    def __init__(
        self, dispatch: "Dispatch", candidate: Candidate, requirements: WorkerRequirements, charged: float, waited_seconds: float = 0.0
    ) -> None:
        self.worker = candidate.worker
        #: What the worker announced about the model.
        self.offer = candidate.offer
        #: Who gets the prompt; None if it stays on the operator's machines.
        self.provider = candidate.offer.provider or None
        #: The worker must finish another request first.
        self.waits_there = requirements.takes_slot and candidate.capacity.free <= 0
        #: The worker has accepted the request, and read its prompt.
        self.was_accepted = False
        #: How long the request waited for a worker's start, which doesn't count into its deadline.
        self.start_wait_seconds = 0.0
        #: What runs on the worker; None before and after that.
        self.call: Preemptible | None = None
        self._dispatch = dispatch
        self._requirements = requirements
        self._charged = charged
        self._is_released = False
        self._entered = False
        self._began_at = dispatch.clock()
        #: When the request began to wait.
        self.asked_at = self._began_at - waited_seconds
        self.has_delivered = False
        self._failed = self._is_preempted = False
        self._has_token_counts = False
        if requirements.takes_slot:
            dispatch.worker_stats.occupancy.begin(self.worker.node, requirements.model)
        self._works_since = None if self.waits_there else self._began_at
        self.has_started = not self.waits_there
        self._worked_seconds = 0.0

    @property
    def tenant(self) -> TenantId:
        """Return the tenant whose share of the slots it uses."""
        return self._requirements.limited_as

    @property
    def seconds(self) -> float:
        """Return how long the worker computed; 0 while the call waits there, and if it failed before it delivered anything."""
        if self._failed and not self.has_delivered:
            return 0.0
        return self._worked_seconds if self._works_since is None else self._dispatch.clock() - self._works_since

    def mark_started(self) -> None:
        """Record that the worker has started the call, for which it had no free slot before."""
        self.has_started = True
        self._works_since = self._dispatch.clock()

    def __enter__(self) -> "Claim":
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._failed = self._failed or (kind is not None and issubclass(kind, errors.AimeshError))
        self.release()

    def release(self) -> None:
        """Release the slot. Safe to call twice."""
        if not self._is_released:
            seconds = self._dispatch.clock() - self._began_at if self._entered and not self._failed else None
            self._end_work()
            if self._requirements.takes_slot:
                self._dispatch.release_slot(self, self._requirements.model, seconds)

    def preempt(self) -> None:
        """End the call at its worker. The dispatch reassigns the slot."""
        assert self.call is not None
        self._is_preempted = True
        self.call.preempt()
        self._end_work()

    def _end_work(self) -> None:
        self._is_released = True
        if self._works_since is not None:
            self._worked_seconds, self._works_since = self._dispatch.clock() - self._works_since, None

    def record_delivery(self) -> None:
        """Record the worker's first tokens."""
        self.has_delivered = True
        if not self.has_started:
            self.mark_started()
        if self._dispatch.worker_stats.outliers.records:
            self._dispatch.worker_stats.outliers.record_delivery(self.worker.node, self._requirements.model)

    def record_failure(self, error: errors.AimeshError) -> None:
        """Record the worker's failure. The tenant is charged only for what ``record_tokens`` reported."""
        self._failed = True
        if not self._has_token_counts:
            self._charge(0.0)
        dispatch, node, model = self._dispatch, self.worker.node, self._requirements.model
        if dispatch.worker_stats.outliers.record_failure(node, model, error, dispatch.clock()):
            ejection_seconds = dispatch.worker_stats.outliers.ejection_seconds(node, model, dispatch.clock())
            _log.warning("worker ejected", worker=node, model=model, seconds=ejection_seconds, code=errors.code_of(error))

    def record_tokens(self, prompt: int, completion: int) -> None:
        """Replace the estimated cost by the actual one. A prompt longer than the request's bound is not believed. A preempted answer keeps
        the estimate: else its tenant would be next, and take back the slot."""
        self._has_token_counts = True
        actual = fair_queue.cost(min(max(prompt, 0), self._requirements.prompt_tokens), completion)
        if self._is_preempted:
            self._charge(max(actual, self._charged))
        else:
            self._charge(actual, completion)

    def _charge(self, cost: float, answer_tokens: int | None = None) -> None:
        self._dispatch.charge(self._requirements, cost - self._charged, answer_tokens=answer_tokens)
        self._charged = cost
