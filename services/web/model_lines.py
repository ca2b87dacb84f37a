"""The models of the mesh: what is served, where, and what it costs. Pure: joins what three methods of the gateway say.

Whether a served model is in memory now, no method says: it answers, at once or after it was loaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared import amounts
from shared.api.gateway import NodeRow, ServedModel
from shared.api.ledger import ModelPrice
from shared.types import ModelName, NodeId, Role

#: Of a node's id; enough to tell nodes apart.
SHOWN_OF_ID = 9


@dataclass(frozen=True, slots=True)
class Place:
    """A worker that has the model."""

    id: NodeId
    short: str
    #: What its certificate says of it, such as `room=3`.
    labels: tuple[str, ...]
    load: str
    #: Empty where it can be used.
    why_not: str


@dataclass(frozen=True, slots=True)
class Price:
    """In credits for a million tokens; what a request costs besides, where it does."""

    input: str
    output: str
    besides: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLine:
    name: ModelName
    aliases: tuple[str, ...]
    #: None where nobody serves it now.
    context_tokens: int | None
    only_embeds: bool
    #: A word, its tone (good, warn or bad) and why.
    state: str
    tone: str
    why: str
    #: How many workers serve it now.
    workers: int
    #: All that have it, those that can be used first; empty where the list of nodes could not be had.
    places: tuple[Place, ...]
    #: None where it costs nothing, or where prices could not be had.
    price: Price | None


def join(
    served: Iterable[ServedModel], nodes: Iterable[NodeRow] | None, prices: Iterable[ModelPrice] | None, *, unserved_too: bool
) -> tuple[ModelLine, ...]:
    """Served ones in the gateway's order, the default first; then those that workers have and nobody can use now, for who can do something
    about that. ``nodes`` and ``prices`` are None where the gateway did not say."""
    workers = [row for row in nodes or () if row.role is Role.WORKER]
    priced = {price.model: price for price in prices or ()}
    lines = [_served(model, workers, priced) for model in served]
    known = {line.name for line in lines}
    if unserved_too:
        others = sorted({model for row in workers if row.alive for model in row.models} - known)
        lines += [_unserved(model, workers, priced) for model in others]
    return tuple(lines)


def _served(model: ServedModel, workers: Iterable[NodeRow], prices: dict[ModelName | None, ModelPrice]) -> ModelLine:
    return ModelLine(
        name=model.name,
        aliases=model.aliases,
        context_tokens=model.context_tokens,
        only_embeds=model.only_embeds,
        state="served",
        tone="good",
        why="",
        workers=model.workers,
        places=_places(model.name, workers),
        price=_price(model.name, prices),
    )


def _unserved(model: ModelName, workers: Iterable[NodeRow], prices: dict[ModelName | None, ModelPrice]) -> ModelLine:
    places = _places(model, workers)
    # A worker that can be used and does not serve it has its engine loading, restarting or failed.
    is_loading = any(not place.why_not for place in places)
    return ModelLine(
        name=model,
        aliases=(),
        context_tokens=None,
        only_embeds=False,
        state="not ready" if is_loading else "not served",
        tone="warn" if is_loading else "bad",
        why="its engine loads, restarts or has failed" if is_loading else places[0].why_not if places else "",
        workers=0,
        places=places,
        price=_price(model, prices),
    )


def _places(model: ModelName, workers: Iterable[NodeRow]) -> tuple[Place, ...]:
    found = [row for row in workers if row.alive and model in row.models]
    return tuple(_place(row) for row in sorted(found, key=lambda row: (not row.usable, row.running + row.queued, row.id)))


def _place(row: NodeRow) -> Place:
    load = f"{row.running} of {row.slots} busy" if row.slots else ""
    waiting = f", {row.queued} waiting" if row.slots and row.queued else ""
    labels = tuple(f"{key}={value}" for key, value in sorted(row.labels.items()))
    return Place(row.id, row.id[:SHOWN_OF_ID], labels, load + waiting, "" if row.usable else row.why_not or "cannot be used")


def _price(model: ModelName, prices: dict[ModelName | None, ModelPrice]) -> Price | None:
    """Its own, or the one that holds for all without one."""
    price = prices.get(model) or prices.get(None)
    if price is None:
        return None
    besides = []
    if price.request_micro:
        besides.append(f"{amounts.written(price.request_micro)} a request")
    if price.compute_second_micro:
        besides.append(f"{amounts.written(price.compute_second_micro)} a second")
    return Price(amounts.written(price.input_micro_per_million), amounts.written(price.output_micro_per_million), ", ".join(besides))
