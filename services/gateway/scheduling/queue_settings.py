"""What an operator sets for the queue, and what a request over one of its bounds is told.  Pure."""

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
    #: The longest that a request waits for a worker.
    queue_seconds: float = 30.0
    #: Over all models. At 30 s more than these would outwait ``queue_seconds`` on any mesh that ends less than 33 requests a second; with
    #: prompts of 16 KiB they take 16 MiB of memory.
    queue_most: int = 1000
    #: So that ten tenants at least find a place, however many requests one of them sends.
    queue_per_tenant: int = 100

    def check_bounds(self, lane: ModelQueue[_Ticket], wish: WorkerRequirements, waiting_anywhere: int, more: int) -> None:
        """For a request that has entered, or for one ``more``. Raises Overloaded."""
        mine, position = lane.queue.waiting_of(wish.limited_as) + more, lane.queue.position_of_last(wish.limited_as) + more
        retry = lane.retry_seconds(position)
        if mine > self.queue_per_tenant:
            full = f"{mine - 1} of your requests wait for {wish.model} already, which is the most"
            raise errors.Overloaded(full, hint="send fewer at once", retry_after_seconds=retry)
        if waiting_anywhere + more > self.queue_most:
            full = f"all workers of {wish.model} are busy and {self.queue_most} requests wait already"
            raise errors.Overloaded(full, hint="try again, or add a worker", retry_after_seconds=retry)
        expected = lane.expected_seconds(position)
        if expected is not None and expected > self.queue_seconds:
            most = self.queue_seconds
            full = f"all workers of {wish.model} are busy: it would take about {expected:.0f} s, and a request waits {most:g} s at most"
            raise errors.Overloaded(full, hint="try again, or add a worker", retry_after_seconds=max(1.0, expected - most))

    def too_long(self, lane: ModelQueue[_Ticket], wish: WorkerRequirements) -> errors.Overloaded:
        """What a request is told that waited for ``queue_seconds``."""
        return errors.Overloaded(
            f"no worker of {wish.model} became free within {self.queue_seconds:g} s",
            hint="try again, or add a worker",
            retry_after_seconds=lane.retry_seconds(lane.queue.position_of_last(wish.limited_as)),
        )
