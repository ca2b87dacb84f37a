"""Counts the workers that could serve each model, including models that lost their last worker."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from services.gateway.scheduling.dispatch import Dispatch
from shared.node import Node
from shared.protocol.directory import DirectoryEntry
from shared.types import ModelName, NodeId, Role

#: A model without workers is no longer reported after this time.
MISSED_SECONDS: Final = 24 * 3600.0
#: Limit on counted models, as for queues: a worker could announce new names forever.
MAX_MODELS: Final = 1000


@dataclass(frozen=True, slots=True)
class _ServedCount:
    """When a model was last served, and by which workers."""

    at: float
    by: frozenset[NodeId]


class ModelCoverage:
    """Counts the workers of each model since this gateway started."""

    def __init__(self) -> None:
        self._served: dict[ModelName, _ServedCount] = {}

    def count(self, workers: Iterable[DirectoryEntry], is_quarantined: Callable[[NodeId], bool], now: float) -> Mapping[ModelName, int]:
        """Count over all known workers, gone ones included; a worker that ``is_quarantined`` gets no requests."""
        usable = [entry for entry in workers if not entry.why_not and not is_quarantined(entry.node)]
        serving = _serving(usable)
        offered = {entry.node: {offer.name for offer in entry.announcement.models} for entry in usable}
        self._served = {model: last for model, last in self._served.items() if model in serving or _is_missed(model, last, offered, now)}
        for model in sorted(serving):
            if model in self._served or len(self._served) < MAX_MODELS:
                self._served[model] = _ServedCount(now, frozenset(serving[model]))
        return {model: len(serving.get(model, ())) for model in self._served}


def _serving(usable: Iterable[DirectoryEntry]) -> dict[ModelName, set[NodeId]]:
    found: dict[ModelName, set[NodeId]] = {}
    for entry in usable:
        for offer in entry.announcement.models:
            if offer.ready:
                found.setdefault(offer.name, set()).add(entry.node)
    return found


def _is_missed(model: ModelName, last: _ServedCount, offered: Mapping[NodeId, set[ModelName]], now: float) -> bool:
    """Return False if all workers that served the model are fine but no longer offer it: it was removed on purpose."""
    was_removed = all(node in offered and model not in offered[node] for node in last.by)
    return now - last.at <= MISSED_SECONDS and not was_removed


#: The alert waits for minutes; counting a thousand workers takes milliseconds.
EVERY_SECONDS: Final = 2.0


async def measure(node: Node, dispatch: Dispatch) -> None:
    """Update the metric until canceled."""
    coverage, shown = ModelCoverage(), node.metrics.model_workers

    def is_quarantined(worker: NodeId) -> bool:
        return dispatch.worker_stats.dishonest_workers.seconds_left(worker, dispatch.clock()) > 0

    while True:
        counted = coverage.count(node.directory.entries(Role.WORKER), is_quarantined, dispatch.clock())
        shown.clear()
        for model, workers in counted.items():
            shown.labels(model=model).set(workers)
        await asyncio.sleep(EVERY_SECONDS)
