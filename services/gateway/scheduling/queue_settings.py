"""Holds the queue's settings, and checks its bounds. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from services.gateway.scheduling.fair_queue import ModelQueue
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_choice import PromptPrivacy
from shared import errors

_Ticket = TypeVar("_Ticket", bound=Hashable)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    policy: PromptPrivacy = PromptPrivacy.GROUP
    #: Longest wait for a worker.
    queue_seconds: float = 30.0
    #: Over all models. A mesh that completes fewer than 33 requests a second can't serve more within 30 s; with prompts of 16 KiB they
    #: take 16 MiB of memory.
    queue_most: int = 1000
    #: One tenant can't fill the queue: at least ten tenants fit.
    queue_per_tenant: int = 100

    def check_bounds(self, model_queue: ModelQueue[_Ticket], requirements: WorkerRequirements, waiting_anywhere: int, more: int) -> None:
        """Check the bounds for a queued request, or for one ``more``. Raises Overloaded."""
        own, position = (
            model_queue.queue.waiting_of(requirements.limited_as) + more,
            model_queue.queue.position_of_last(requirements.limited_as) + more,
        )
        retry = model_queue.retry_seconds(position)
        if own > self.queue_per_tenant:
            full = f"{own - 1} of your requests are already queued for {requirements.model}, which is the limit"
            raise errors.Overloaded(full, hint="send fewer requests at the same time", retry_after_seconds=retry)
        if waiting_anywhere + more > self.queue_most:
            full = f"all workers of {requirements.model} are busy and {self.queue_most} requests are already queued"
            raise errors.Overloaded(full, hint="retry later, or add a worker", retry_after_seconds=retry)
        expected = model_queue.expected_seconds(position)
        if expected is not None and expected > self.queue_seconds:
            most = self.queue_seconds
            full = f"all workers of {requirements.model} are busy: the expected wait is {expected:.0f} s, and the limit is {most:g} s"
            raise errors.Overloaded(full, hint="retry later, or add a worker", retry_after_seconds=max(1.0, expected - most))

    def wait_exceeded(self, model_queue: ModelQueue[_Ticket], requirements: WorkerRequirements) -> errors.Overloaded:
        """Return the error for a request that waited ``queue_seconds``."""
        return errors.Overloaded(
            f"no worker of {requirements.model} became free within {self.queue_seconds:g} s",
            hint="retry later, or add a worker",
            retry_after_seconds=model_queue.retry_seconds(model_queue.queue.position_of_last(requirements.limited_as)),
        )
