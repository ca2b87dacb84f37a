"""Names what workers serve under a model's name, so that nothing that is known of a model outlives an exchange of its file. Pure."""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from shared.protocol.directory import DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: Build -> how many of its scripted tool calls were right.
RightCalls = Mapping[str, int]
NONE_CHECKED: RightCalls = MappingProxyType({})


def offers_of(models: Collection[ModelName], workers: Iterable[DirectoryEntry]) -> list[tuple[NodeId, ModelOffer]]:
    """Return the ready offers of these models, and whose each is."""
    return [(worker.node, offer) for worker in workers for offer in worker.announcement.models if offer.name in models and offer.ready]


def of(served: Iterable[tuple[NodeId, ModelOffer]]) -> frozenset[str]:
    """Return the builds of those that answer prompts."""
    return frozenset(_build(node, offer) for node, offer in served if offer.answers_prompts)


def least_right(builds: Collection[str], right_calls: RightCalls) -> int | None:
    """Return None unless each of them was checked."""
    found = [right_calls[build] for build in builds if build in right_calls]
    return min(found) if found and len(found) == len(builds) else None


def _build(node: NodeId, offer: ModelOffer) -> str:
    # Many servers tell no digest. Then it is what this server, or this provider, calls so.
    return offer.digest or f"{offer.provider or node}/{offer.upstream_model or offer.name}"
