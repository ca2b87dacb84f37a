"""Knows the models whose workers can be started, and how long a start still takes. Pure."""

import itertools
import math
from collections.abc import Mapping, Sequence

from services.gateway.facts.worker_requirements import WorkerRequirements
from shared import errors
from shared.protocol.directory import DirectoryEntry
from shared.types import ModelName
from shared.worker_pools import PoolsFile, WorkerPool

#: Models remembered of the workers with one pool's labels: more than such workers serve.
_MAX_MODELS = 100
#: After this many times the usual time, the start that earlier requests waited for is over.
_STALE_STARTS = 2


class WorkerStarts:
    """Tracks the starts that requests wait for."""

    def __init__(self, source: PoolsFile | None = None) -> None:
        self.source = source or PoolsFile(None)
        #: The models that workers with a pool's labels have had.
        self._labeled: dict[str, dict[ModelName, None]] = {}
        self._indexed: Sequence[WorkerPool] | None = None
        self._by_model: dict[ModelName, WorkerPool] = {}
        #: When the first request of each pool began to wait.
        self._since: dict[str, float] = {}
        #: Until when the pool can't be started, and why.
        self._given_up: dict[str, tuple[float, str]] = {}

    @property
    def pools(self) -> Mapping[ModelName, WorkerPool]:
        """Return the pool of each model whose workers can be started."""
        if self._indexed is not (pools := self.source.pools):
            named = {ModelName(model): pool for pool in pools for model in pool.models}
            labeled = {model: pool for pool in pools if pool.labels for model in self._labeled.get(pool.name, ())}
            self._indexed, self._by_model = pools, labeled | named
        return self._by_model

    def apply_change(self, worker: DirectoryEntry) -> None:
        """Learn the models of its pool, and whether the start is over."""
        offers = worker.announcement.models
        for pool in self.source.pools:
            if pool.labels and pool.labels.items() <= worker.announcement.labels.items():
                known = self._labeled.setdefault(pool.name, {})
                if new := {offer.name: None for offer in offers if offer.name not in known}:
                    known.update(itertools.islice(new.items(), _MAX_MODELS - len(known)))
                    self._indexed = None
        if not worker.why_not:
            for offer in offers:
                if offer.ready and (found := self.pools.get(offer.name)) is not None:
                    self._since.pop(found.name, None)
                    self._given_up.pop(found.name, None)

    def begin(self, requirements: WorkerRequirements, now: float) -> bool:
        """Return whether the request waits for a start. Raises NotStarted if the start was given up."""
        pool = self._pool_of(requirements)
        if pool is None:
            return False
        until, reason = self._given_up.get(pool.name, (-math.inf, ""))
        if now < until:
            raise errors.NotStarted(
                f"no worker of {requirements.model} can be started: {reason}", hint="retry later", retry_after_seconds=pool.start_seconds
            )
        if now - self._since.get(pool.name, -math.inf) > _STALE_STARTS * pool.start_seconds:
            self._since[pool.name] = now
        return True

    def seconds_left(self, requirements: WorkerRequirements, now: float) -> float | None:
        """Return the usual rest of the start that the request would wait for, 0 if it is late; None if no start can help."""
        pool = self._pool_of(requirements)
        return None if pool is None else max(0.0, self._since.get(pool.name, now) + pool.start_seconds - now)

    def give_up(self, pool: str, reason: str, until: float) -> None:
        self._given_up[pool] = until, reason

    def not_ready(self, requirements: WorkerRequirements, waited_seconds: float) -> errors.NotStarted:
        """Return the error for a request that waited too long."""
        pool = self._pool_of(requirements)
        return errors.NotStarted(
            f"no worker of {requirements.model} was ready after {waited_seconds:g} s",
            hint="retry later; see `aicli nodes`",
            retry_after_seconds=None if pool is None else pool.start_seconds,
        )

    def _pool_of(self, requirements: WorkerRequirements) -> WorkerPool | None:
        # A started answer needs the same file, and another target of a route is sooner.
        return None if requirements.has_alternative or requirements.origin is not None else self.pools.get(requirements.model)


def describe(seconds_left: float) -> str:
    """Return the notice for a waiting caller; the text changes every 10 s, and then every second."""
    if not seconds_left:
        return "waiting: a worker is starting, and takes longer than usual"
    return f"waiting: a worker is starting, about {math.ceil(seconds_left) if seconds_left <= 10 else 10 * math.ceil(seconds_left / 10)} s"
