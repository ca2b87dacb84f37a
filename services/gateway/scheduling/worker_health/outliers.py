"""Which workers fail so often that they get a rest.  Pure; the caller brings the clock.

As Envoy's outlier detection: five failures in a row put a worker aside for 30 s, for 60 s the next time, and so on. It is never
the last worker of a model that is put aside: see ``worker_choice.without_outliers``.
"""

from dataclasses import dataclass

from shared import errors
from shared.types import ModelName, NodeId

FAILURES = 5
REST_SECONDS = 30.0
#: Envoy's max_ejection_time.
LONGEST_REST_SECONDS = 300.0
#: A worker that did well for so long begins anew.
FORGIVEN_SECONDS = 300.0

#: What says that something is wrong with a worker; one that is full, drains or is older is well.
_FAULTS = (errors.LinkLost, errors.NotReachable, errors.ModelCrashed, errors.Unavailable, errors.ProtocolViolation, errors.DeadlineExceeded)


@dataclass(slots=True)
class _FailureRecord:
    failures: int = 0
    rests: int = 0
    until: float = 0.0


class Outliers:
    """What each worker did of late with each of its models: a broken model is no reason to leave the others alone."""

    def __init__(self) -> None:
        #: Only of those that have failed, and until they are gone.
        self._records: dict[tuple[NodeId, ModelName], _FailureRecord] = {}

    def failed(self, node: NodeId, model: ModelName, error: errors.AimeshError, now: float) -> bool:
        """True where that puts it aside."""
        if not isinstance(error, _FAULTS):
            return False
        record = self._records.setdefault((node, model), _FailureRecord())
        if now < record.until:
            return False  # what it had begun before; the rest is long enough
        record.failures += 1
        if record.failures < FAILURES:
            return False
        record.rests = record.rests + 1 if now - record.until < FORGIVEN_SECONDS else 1
        record.failures = 0
        record.until = now + min(LONGEST_REST_SECONDS, REST_SECONDS * record.rests)
        return True

    def delivered(self, node: NodeId, model: ModelName) -> None:
        """It gave tokens."""
        if record := self._records.get((node, model)):
            record.failures = 0

    def forget(self, node: NodeId) -> None:
        """It is gone, or another process."""
        for key in [key for key in self._records if key[0] == node]:
            del self._records[key]

    def rest_seconds(self, node: NodeId, model: ModelName, now: float) -> float:
        """How long it stays put aside; 0 where it is not."""
        record = self._records.get((node, model))
        return 0.0 if record is None else max(0.0, record.until - now)
