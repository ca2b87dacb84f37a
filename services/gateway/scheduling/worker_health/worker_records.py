"""What the gateway remembers about each worker: how it failed, when it joined, and whether it lied about tokens. Pure; the caller
brings the clocks.

- ``Outliers`` works like Envoy's outlier detection: five failures in a row put a worker aside for 30 s, then for 60 s, and so on. The last
  worker of a model is never put aside (``worker_choice.without_outliers``).
- ``SlowStart`` sends few requests to a worker that has just joined.
- ``DishonestWorkers`` quarantines workers that report wrong token counts. Nobody pays for a wrong count (``active_request``), but a worker
  that lies about counts may lie about more. A quarantine belongs to the machine, so a restart does not end it; time or an administrator's
  pardon does. ``quarantine`` shares it between gateways and keeps it over their restarts.
"""

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime

from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.discovery.directory import DirectoryEntry
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


#: A worker that has just come gets a tenth of its share, and all of it after this time: whatever makes its first answers slow, or
#: ends it again, then meets few.
SLOW_START_SECONDS = 30.0
_FIRST_SHARE = 0.1


class SlowStart:
    def __init__(self) -> None:
        self._since: dict[NodeId, tuple[datetime, float]] = {}

    def heard(self, worker: DirectoryEntry, clock: float, now: datetime) -> bool:
        """True where it has come, or come back as another process."""
        before = self._since.get(worker.node)
        if before is not None and before[0] == worker.since:
            return False
        # One that we hear of for the first time has been there since it started.
        self._since[worker.node] = (worker.since, clock - max(0.0, (now - worker.since).total_seconds()))
        return True

    def gone(self, node: NodeId) -> None:
        self._since.pop(node, None)

    def arrived(self, node: NodeId) -> float | None:
        """By the caller's clock; None for one that nothing was heard of."""
        found = self._since.get(node)
        return None if found is None else found[1]

    def share(self, node: NodeId, clock: float) -> float:
        """From 0.1 to 1."""
        arrived = self.arrived(node)
        return 1.0 if arrived is None else min(1.0, _FIRST_SHARE + (1 - _FIRST_SHARE) * (clock - arrived) / SLOW_START_SECONDS)


#: So many put a worker away; older ones than the time do not count.
STRIKES, WITHIN_SECONDS = 3, 3600.0
QUARANTINE_SECONDS = 3600.0
#: What may be told beside what came, of each answer: some count its end, which is no text.
_SLACK_SHARE, _SLACK_TOKENS = 0.02, 1
#: More than any prompt that is let in, and what a template or a server may add to it unseen.
MOST_PROMPT_TOKENS = 4 * 1024 * 1024


@dataclass(slots=True)
class _StrikeRecord:
    struck_at: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))
    until: float = 0.0


class DishonestWorkers:
    """One for the gateway."""

    def __init__(self) -> None:
        #: Only of those that have told a wrong number; who has a certificate is known by name, so these are few.
        self._records: dict[NodeId, _StrikeRecord] = {}

    def strike(self, node: NodeId, now: float) -> bool:
        """It told a wrong number. True where that puts it away."""
        record = self._records.setdefault(node, _StrikeRecord())
        if now < record.until:
            return False  # of what it had begun before
        record.struck_at.append(now)
        if len(record.struck_at) < STRIKES or now - record.struck_at[0] > WITHIN_SECONDS:
            return False
        record.struck_at.clear()
        record.until = now + QUARANTINE_SECONDS
        return True

    def learn(self, left: Mapping[NodeId, float], now: float, *, unless: Set[NodeId] = frozenset()) -> None:
        """For how long all gateways keep workers away, by what each of them has seen. Nothing is learned of those of ``unless``."""
        for node in (self._records.keys() | left.keys()) - unless:
            record = self._records.setdefault(node, _StrikeRecord())
            seconds = left.get(node, 0.0)
            if seconds or now < record.until:
                # It was put away, or pardoned.
                record.struck_at.clear()
            record.until = now + seconds if seconds else 0.0

    def seconds_left(self, node: NodeId, now: float) -> float:
        """How long it gets no requests; 0 where it does."""
        record = self._records.get(node)
        return 0.0 if record is None else max(0.0, record.until - now)


def why_not(seconds_left: float) -> str:
    """For people; empty where it gets requests."""
    if not seconds_left:
        return ""
    return f"is in quarantine for {max(1, round(seconds_left / 60))} min: it told wrong counts of tokens {STRIKES} times"


def is_wrong(claimed: int, came: int, answers: int) -> bool:
    """Whether a worker that gave so many tokens of an answer may not say so many. ``came`` 0: it gives none, and nobody can tell."""
    if claimed < 0:
        return True
    return came > 0 and abs(claimed - came) > max(_SLACK_TOKENS * answers, _SLACK_SHARE * came)


def is_impossible(wish: WorkerRequirements, prompt_tokens: int) -> bool:
    """A prompt is read by the worker's own tokenizer and template, so only what no prompt can have is wrong."""
    return not 0 <= prompt_tokens <= max(wish.prompt_tokens, MOST_PROMPT_TOKENS)
