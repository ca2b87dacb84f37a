"""Names what workers serve under a model's name, so that nothing that is known of a model outlives an exchange of its file. Pure."""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from shared.protocol.directory import DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: Build -> how many of its scripted tool calls were right.
RightCalls = Mapping[str, int]
NONE_CHECKED: RightCalls = MappingProxyType({})


def of(workers: Iterable[DirectoryEntry], models: Collection[ModelName]) -> frozenset[str]:
    """Return the builds of models that answer prompts."""
    return frozenset(
        _build(worker.node, offer)
        for worker in workers
        for offer in worker.announcement.models
        if offer.name in models and offer.ready and not (offer.only_embeds or offer.only_moderates)
    )


def least_right(builds: Collection[str], right_calls: RightCalls) -> int | None:
    """Return None unless each of them was checked."""
    found = [right_calls[build] for build in builds if build in right_calls]
    return min(found) if found and len(found) == len(builds) else None


def _build(node: NodeId, offer: ModelOffer) -> str:
    # Many servers tell no digest. Then it is what this server, or this provider, calls so.
    return offer.digest or f"{offer.provider or node}/{offer.upstream_model or offer.name}"
