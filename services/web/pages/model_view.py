"""Join the models, nodes and prices that the gateway reports for the models page. Pure.

No method reports whether a served model is in memory: a worker may have to load it first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shared import amounts
from shared.api.gateway import NodeRow, ServedModel, ServedModels
from shared.api.ledger import ModelPrice
from shared.api.metrics import History, HistoryGrouping
from shared.lists import nodes as lists
from shared.lists.columns import pairs
from shared.telemetry.answer_instruments import DraftResult
from shared.types import ModelName, NodeId, Role


@dataclass(frozen=True, slots=True)
class ModelPlaceView:
    """A worker that has the model."""

    id: NodeId
    short: str
    #: The labels in its certificate, such as `room=3`.
    labels: tuple[str, ...]
    load: str
    #: Why the gateway does not use it; empty if it does.
    why_not: str


@dataclass(frozen=True, slots=True)
class ModelPriceView:
    """A price in credits per 1M tokens, and other charges if any."""

    input: str
    output: str
    extras: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModelView:
    name: ModelName
    aliases: tuple[str, ...]
    #: None if no worker serves it.
    context_tokens: int | None
    only_embeds: bool
    #: These two: see ``ServedModel``.
    suits_agents: bool
    agents_hint: str
    #: A word, its tone (good, warn or bad) and why.
    state: str
    tone: str
    why: str
    workers: int
    #: How many drafted tokens were right; empty if none were drafted, or the history is unavailable.
    drafts: str
    #: All workers that have it, usable ones first; empty if the node list is unavailable.
    places: tuple[ModelPlaceView, ...]
    #: None if it is free or prices are unavailable.
    price: ModelPriceView | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPullView:
    """A running download."""

    id: str = ""
    model: str = ""
    node: str = ""
    #: Bytes done of all, and the share.
    progress: str = ""
    speed: str = ""


def pulls(nodes: Iterable[NodeRow]) -> tuple[ModelPullView, ...]:
    return tuple(
        ModelPullView(
            id=f"{node.id}/{pull.model}",
            model=pull.model,
            node=lists.short(node.id),
            progress=amounts.show_progress(pull.done_bytes, pull.total_bytes),
            speed=f"{amounts.show_bytes(int(pull.bytes_per_second))}/s",
        )
        for node in nodes
        for pull in node.pulls
    )


def join(
    served: Iterable[ServedModel],
    nodes: Iterable[NodeRow] | None,
    prices: Iterable[ModelPrice] | None,
    history: History | None = None,
    *,
    unserved_too: bool,
) -> tuple[ServedModelView, ...]:
    """Return the served models in the gateway's order, then, with ``unserved_too``, the models that no usable worker serves.

    ``nodes``, ``prices`` and ``history``, the drafted tokens by model, are None if they are unavailable.
    """
    drafts = _drafts(history)
    workers = [row for row in nodes or () if row.role is Role.WORKER]
    priced = {price.model: price for price in prices or ()}
    lines = [_served(model, workers, priced, drafts.get(model.name, "")) for model in served]
    known = {line.name for line in lines}
    if unserved_too:
        others = sorted({model for row in workers if row.alive for model in row.models} - known)
        lines += [_unserved(model, workers, priced) for model in others]
    return tuple(lines)


def default_model(served: ServedModels | None) -> ModelName | None:
    """Return the first model that generates text; None if there is none or the list is unavailable."""
    return next((model.name for model in served.models if not model.only_embeds), None) if served is not None else None


def _drafts(history: History | None) -> dict[str, str]:
    if history is None:
        return {}
    counts: dict[str, dict[str, float]] = {}
    for line in history.lines:
        results = counts.setdefault(line.labels.get(HistoryGrouping.MODEL, ""), dict.fromkeys(DraftResult, 0.0))
        results[line.labels.get("result", "")] = history.step_seconds * sum(rate for rate in line.values if rate)
    return {
        model: f"{results[DraftResult.ACCEPTED] / total:.0%} of {total:,.0f} drafted tokens accepted in the last hour"
        for model, results in counts.items()
        if (total := sum(results.values())) >= 1
    }


def _served(model: ServedModel, workers: Iterable[NodeRow], prices: dict[ModelName | None, ModelPrice], drafts: str) -> ServedModelView:
    return ServedModelView(
        name=model.name,
        aliases=model.aliases,
        context_tokens=model.context_tokens,
        only_embeds=model.only_embeds,
        suits_agents=model.suits_agents,
        agents_hint=model.agents_hint,
        state="OK",
        tone="good",
        why="",
        workers=model.workers,
        drafts=drafts,
        places=_places(model.name, workers),
        price=_price(model.name, prices),
    )


def _unserved(model: ModelName, workers: Iterable[NodeRow], prices: dict[ModelName | None, ModelPrice]) -> ServedModelView:
    places = _places(model, workers)
    # The engine of a usable worker that does not serve the model is loading, restarting or failed.
    is_loading = any(not place.why_not for place in places)
    return ServedModelView(
        name=model,
        aliases=(),
        context_tokens=None,
        only_embeds=False,
        suits_agents=False,
        agents_hint="",
        state="Degraded" if is_loading else "Down",
        tone="warn" if is_loading else "bad",
        why="the engine is loading, restarting or failed" if is_loading else places[0].why_not if places else "",
        workers=0,
        drafts="",
        places=places,
        price=_price(model, prices),
    )


def _places(model: ModelName, workers: Iterable[NodeRow]) -> tuple[ModelPlaceView, ...]:
    found = [row for row in workers if row.alive and model in row.models]
    return tuple(_place(row) for row in sorted(found, key=lambda row: (not row.usable, row.running + row.queued, row.id)))


def _place(row: NodeRow) -> ModelPlaceView:
    load = lists.load(row.running, row.slots, row.queued) or ""
    return ModelPlaceView(row.id, lists.short(row.id), pairs(row.labels), load, "" if row.usable else row.why_not or "unavailable")


def _price(model: ModelName, prices: dict[ModelName | None, ModelPrice]) -> ModelPriceView | None:
    price = prices.get(model) or prices.get(None)
    if price is None:
        return None
    extras = []
    if price.request_micro:
        extras.append(f"{amounts.written(price.request_micro)} per request")
    if price.compute_second_micro:
        extras.append(f"{amounts.written(price.compute_second_micro)} per compute second")
    return ModelPriceView(
        amounts.written(price.input_micro_per_million), amounts.written(price.output_micro_per_million), ", ".join(extras)
    )
