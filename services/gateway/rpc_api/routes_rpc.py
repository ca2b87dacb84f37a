"""Administrators' RPC for routes: their targets now, and why a request would use them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.facts import model_routes, upstream_prices
from services.gateway.facts.model_routes import Route, RouteTarget
from services.gateway.facts.upstream_prices import ReadSpending, TargetsSpending
from services.gateway.scheduling import route_choice
from services.gateway.scheduling.route_choice import DroppedTarget, DropReason, RequestFacts, RouteDecision
from shared import errors
from shared.api import configuration as api
from shared.api.ledger import ModelPrice
from shared.config_documents import ConfigKind, RouteDocument
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc import RpcCall, serves
from shared.types import MicroCredits, ModelName, Role, TenantId

#: Owns no machine.
_NOBODY = TenantId(UUID(int=0))
_NO_SPENDING = (MicroCredits(0), MicroCredits(0))


@dataclass(frozen=True, slots=True)
class RoutesRpc:
    live: LiveConfiguration
    nodes: Directory
    read_spending: ReadSpending
    price_of: Callable[[ModelName], ModelPrice]

    @serves(api.list_routes)
    async def list_routes(self, _request: api.ListRoutes, _call: RpcCall) -> api.RouteStates:
        workers = Counter(model for worker in self.nodes.usable(Role.WORKER) for model in _ready(worker))
        spending = await self.read_spending()
        return api.RouteStates(tuple(_state(name, version, route, workers, spending) for name, version, route in self._routes()))

    @serves(api.try_route)
    async def try_route(self, request: api.TryRoute, _call: RpcCall) -> api.TriedRoute:
        """Raises NotFound."""
        found = next((found for found in self._routes() if found[0] == request.name), None)
        if found is None:
            raise errors.NotFound(f"there is no route {request.name!r}", hint="see `aicli admin routes list`")
        name, version, document = found
        used = self.live.config.names.find_route(ModelName(name))
        route = model_routes.compile_route(name, version, document, None if used is None else used.rollout)
        policy = self.live.config.policies.find(request.organization, request.key)
        tenant = request.organization or _NOBODY
        offered = route_choice.served_models(self.nodes.usable(Role.WORKER), tenant, policy.placement)
        facts = RequestFacts(
            prompt_tokens=request.prompt_tokens,
            wants_answer=True,
            has_tools=request.tools,
            has_format=request.response_format,
            tier=request.tier,
            key_name=request.key_name,
            organization=tenant,
            now=datetime.now(UTC),
        )

        def find_refusal(model: ModelName) -> DropReason | None:
            if not policy.allows_name(name):
                return DropReason.POLICY_MODEL
            return route_choice.find_refusal(policy, model, self.price_of(ModelName(name) if route.has_own_price else model))

        decision = route_choice.choose(route, facts, offered.get, find_refusal)
        decision = _without_exhausted(decision, await self.read_spending())
        # Up to 20 ms, which would stop the event loop.
        drawn = await asyncio.to_thread(_draw, route, request.count)
        return _tried(decision, drawn)

    def _routes(self) -> Iterator[tuple[str, int, RouteDocument]]:
        for (kind, name), stored in sorted(self.live.documents.items()):
            if kind is ConfigKind.ROUTE and isinstance(stored.body, RouteDocument):
                yield name, stored.version, stored.body


def _ready(worker: DirectoryEntry) -> set[ModelName]:
    return {offer.name for offer in worker.announcement.models if offer.ready}


def _state(name: str, version: int, route: RouteDocument, workers: Counter[ModelName], spending: TargetsSpending) -> api.RouteState:
    targets = (
        api.RouteTargetState(
            target.name,
            target.model,
            target.share,
            target.order,
            workers[ModelName(target.model)],
            spending.get((name, target.name), _NO_SPENDING)[0],
            None if target.daily_ceiling is None else upstream_prices.micro(target.daily_ceiling),
        )
        for target in route.targets
    )
    return api.RouteState(name, version, route.sticky, tuple(targets), route.kept_seconds)


def _without_exhausted(decision: RouteDecision, spending: TargetsSpending) -> RouteDecision:
    """Leave out targets that have spent or hold what they may cost today."""

    def is_exhausted(target: RouteTarget) -> bool:
        spent = sum(spending.get((decision.route.name, target.name), _NO_SPENDING))
        return target.ceiling_micro is not None and spent >= target.ceiling_micro

    left = tuple(target for target in decision.candidates if not is_exhausted(target))
    dropped = {found.target for found in decision.dropped}
    exhausted = (target for target in decision.route.targets if target not in dropped and is_exhausted(target))
    more = tuple(DroppedTarget(target, DropReason.DAILY_CEILING) for target in exhausted)
    return replace(decision, candidates=left, dropped=(*decision.dropped, *more))


def _draw(route: Route, count: int) -> Counter[str]:
    drawn = (route.draw(b"%d" % number) for number in range(count))
    return Counter("" if draw is None else draw.target.name for draw in drawn)


def _tried(decision: RouteDecision, drawn: Counter[str]) -> api.TriedRoute:
    reasons = {found.target.name: found.reason.value for found in decision.dropped}
    fallbacks = sorted(
        (target for target in decision.route.targets if target.order is not None and target.name not in reasons),
        key=lambda target: target.order or 0,
    )
    first = {name: count for name, count in drawn.items() if name and name not in reasons}
    moved = drawn.total() - sum(first.values())
    if fallbacks:
        first[fallbacks[0].name] = first.get(fallbacks[0].name, 0) + moved
    targets = (
        api.TriedTarget(
            target.name,
            target.model,
            first.get(target.name, 0),
            fallbacks.index(target) + 1 if target in fallbacks else None,
            reasons.get(target.name, ""),
        )
        for target in decision.route.targets
    )
    return api.TriedRoute(decision.route.name, decision.route.version, tuple(targets), 0 if fallbacks else moved)
