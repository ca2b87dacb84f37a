"""Decides under which names workers offer the models of other servers. Pure.

Equal digests are one name. Without digests, models are one name only if their owner and their quantization are equal; nobody continues an
answer of one on another then. Otherwise, the later worker puts its machine's name before its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from features.front.contract import Build
from shared.types import ModelName, NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Offerer:
    """A worker, and since when it runs."""

    node: NodeId
    owner: str
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    build: Build
    by: Offerer
    #: Another program's server runs it; the models of our own engine keep their names.
    is_upstream: bool


def names_of(builds: Sequence[Build], machine: str, asker: Offerer, offers: Iterable[Offered]) -> list[ModelName]:
    """Return the name of each build that ``asker`` has."""
    others: dict[str, list[Offered]] = {}
    for offer in offers:
        if offer.by.node != asker.node:
            for name in {offer.build.name, offer.build.name.partition("/")[2]}:
                others.setdefault(name, []).append(offer)
    return [_name_of(build, machine, asker, others.get(build.name, ())) for build in builds]


def _name_of(build: Build, machine: str, asker: Offerer, others: Sequence[Offered]) -> ModelName:
    same = sorted((offer for offer in others if _is_same(offer, build, asker)), key=lambda offer: _age(offer.by))
    older = [offer for offer in same if _age(offer.by) < _age(asker)]
    first = min([_age(asker), *(_age(offer.by) for offer in older if offer.build.name == build.name)])
    rivals = [offer for offer in others if offer.build.name == build.name and offer not in same]
    if any(not offer.is_upstream or _age(offer.by) < first for offer in rivals):
        return next((offer.build.name for offer in older if offer.build.name != build.name), ModelName(f"{machine}/{build.name}"))
    return next((offer.build.name for offer in older), build.name)


def _is_same(offer: Offered, build: Build, asker: Offerer) -> bool:
    if offer.build.digest or build.digest:
        return offer.build.digest == build.digest
    return (offer.build.name, offer.by.owner, offer.build.quantization) == (build.name, asker.owner, build.quantization)


def _age(worker: Offerer) -> tuple[datetime, NodeId]:
    return worker.started_at, worker.node
