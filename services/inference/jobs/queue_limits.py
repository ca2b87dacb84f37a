"""How many jobs a model has, how many it takes, and how long a new one would wait.  Pure; the caller brings the clock."""

from dataclasses import dataclass

from shared import errors

#: How much the newest job moves the mean: about the last ten count.
_WEIGHT = 0.2


@dataclass(slots=True)
class QueueLimits:
    """Counts the jobs of one model. The first ``slots`` run, up to ``queue`` more wait."""

    model: str
    slots: int
    queue: int
    in_flight: int = 0
    #: Of finished jobs, waiting included; 0 until one has finished.
    mean_seconds: float = 0.0

    @property
    def running(self) -> int:
        return min(self.in_flight, self.slots)

    @property
    def queued(self) -> int:
        return max(0, self.in_flight - self.slots)

    def enter(self) -> None:
        """Raises Overloaded when the queue is full. Every ``enter`` is followed by one ``leave``."""
        if self.in_flight >= self.slots + self.queue:
            raise errors.Overloaded(
                f"{self.model} has {self.running} running and {self.queued} waiting requests on this worker; its queue is full",
                hint="try again, or add a worker",
                retry_after_seconds=max(1.0, self.expected_wait_seconds()),
            )
        self.in_flight += 1

    def leave(self, seconds: float) -> None:
        self.in_flight -= 1
        self.mean_seconds = seconds if self.mean_seconds == 0 else (1 - _WEIGHT) * self.mean_seconds + _WEIGHT * seconds

    def expected_wait_seconds(self) -> float:
        """0 while a slot is free, else the jobs before a new one, a slot's share of them, at the mean time of a job."""
        if self.in_flight < self.slots:
            return 0.0
        return (self.queued + 1) / self.slots * self.mean_seconds
