"""Bounds the queue of one model and estimates its wait.  Pure; the caller passes the times."""

from dataclasses import dataclass

from shared import errors

#: Weight of the newest job in the mean, which so covers about the last ten.
_WEIGHT = 0.2


@dataclass(slots=True)
class QueueLimits:
    """Counts the jobs of one model. The first ``slots`` run, up to ``queue`` more wait. Batch jobs have the same room of their own, because
    they make way for live ones."""

    model: str
    slots: int
    queue: int
    #: Live jobs.
    in_flight: int = 0
    batch: int = 0
    #: Mean time of a finished job, waiting included; 0 before the first.
    mean_seconds: float = 0.0

    @property
    def running(self) -> int:
        return min(self.in_flight, self.slots)

    @property
    def queued(self) -> int:
        return max(0, self.in_flight - self.slots)

    def enter(self, *, is_batch: bool = False) -> None:
        """Raises Overloaded if the queue is full. Call ``leave`` once after each successful ``enter``."""
        if (self.batch if is_batch else self.in_flight) >= self.slots + self.queue:
            raise errors.Overloaded(
                f"{self.model} has {self.running} running and {self.queued} waiting requests on this worker; its queue is full",
                hint="try again, or add a worker",
                retry_after_seconds=max(1.0, self.expected_wait_seconds()),
            )
        if is_batch:
            self.batch += 1
        else:
            self.in_flight += 1

    def leave(self, seconds: float, *, is_batch: bool = False) -> None:
        """``seconds``: how long the job took. Those of batch jobs tell nothing about live ones."""
        if is_batch:
            self.batch -= 1
            return
        self.in_flight -= 1
        self.mean_seconds = seconds if self.mean_seconds == 0 else (1 - _WEIGHT) * self.mean_seconds + _WEIGHT * seconds

    def expected_wait_seconds(self, others: int = 0) -> float:
        """Return 0 while a slot is free, else the time until the jobs ahead of a new one have finished, ``others`` among them."""
        ahead = self.in_flight + others - self.slots + 1
        return max(0, ahead) / self.slots * self.mean_seconds
