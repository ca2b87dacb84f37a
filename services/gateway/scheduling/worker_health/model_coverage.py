"""How many workers could serve each model, those included that lost their last one.  Pure; the caller brings the clock."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from shared.discovery.directory import DirectoryEntry
from shared.types import ModelName, NodeId

#: A model that nobody serves for so long is not missed any more.
MISSED_SECONDS: Final = 24 * 3600.0
#: Names that are counted at once, as many as there are queues; a worker could announce others for ever.
MAX_MODELS: Final = 1000


@dataclass(frozen=True, slots=True)
class _ServedCount:
    """The last that was seen of it."""

    at: float
    by: frozenset[NodeId]


class ModelCoverage:
    """One for the gateway, since its start."""

    def __init__(self) -> None:
        self._served: dict[ModelName, _ServedCount] = {}

    def count(self, workers: Iterable[DirectoryEntry], is_kept_away: Callable[[NodeId], bool], now: float) -> Mapping[ModelName, int]:
        """Of all workers that are known, gone ones included; one that ``is_kept_away`` gets no requests whatever it offers."""
        usable = [entry for entry in workers if not entry.why_not and not is_kept_away(entry.node)]
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
    """Not where those who served it are all well and offer it no more: it was taken away from them on purpose."""
    was_taken_away = all(node in offered and model not in offered[node] for node in last.by)
    return now - last.at <= MISSED_SECONDS and not was_taken_away
