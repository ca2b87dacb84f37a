"""The configuration of one revision, as requests use it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

from services.gateway.facts import model_routes, tiers, upstream_prices
from services.gateway.facts.model_names import ModelNames
from services.gateway.facts.model_routes import OpenRollout, Route
from services.gateway.facts.policies import Policies
from services.gateway.facts.tiers import LimitRules, TierPlan
from services.gateway.facts.upstream_prices import UpstreamPrice
from shared.config_documents import (
    DEFAULT_MODEL,
    UNLIMITED,
    ConfigKind,
    DefaultModelDocument,
    Document,
    ModelLimitDocument,
    PlanDocument,
    PolicyDocument,
    RouteDocument,
    UpstreamPriceDocument,
    is_pattern,
)
from shared.limits import BY_NAME
from shared.types import ModelName, PlanName, TenantId, Tier

#: Kind and name of a document.
DocumentKey = tuple[ConfigKind, str]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """The current version of a document."""

    version: int
    #: The revision that began with this version.
    revision: int
    origin: str
    #: None if the document was removed.
    body: Document | None
    #: Whose people wrote it, so that it counts against the tenant's bounds; None if an administrator did.
    tenant: TenantId | None = None
    #: Bytes of the body as JSON.
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSnapshot:
    revision: int = 0
    names: ModelNames = field(default_factory=lambda: ModelNames({}, None))
    limits: LimitRules = field(default_factory=LimitRules)
    policies: Policies = field(default_factory=Policies)
    upstream_prices: Mapping[ModelName, UpstreamPrice] = field(default_factory=dict)
    #: For callers whose policy forbids ``direct_models``.
    route_names: ModelNames = field(default_factory=lambda: ModelNames({}, None, only_routes=True))


NO_ROLLOUTS: Mapping[str, OpenRollout] = MappingProxyType({})


class ConfigSource(Protocol):
    """Has the current snapshot. A request reads it once, and uses the same snapshot to its end."""

    @property
    def config(self) -> ConfigSnapshot: ...


def build(
    revision: int, documents: Mapping[DocumentKey, StoredDocument], rollouts: Mapping[str, OpenRollout] = NO_ROLLOUTS
) -> ConfigSnapshot:
    """Build the snapshot of a revision. ``rollouts``: the open ones, by route."""
    plans: dict[PlanName, PlanDocument] = {}
    model_limits: dict[ModelName, TierPlan] = {}
    aliases: dict[str, str] = {}
    routes: dict[str, Route] = {}
    prices: dict[ModelName, UpstreamPrice] = {}
    default: str | None = None
    policies: dict[str, PolicyDocument] = {}
    policy_revisions = {name: stored.revision for (kind, name), stored in documents.items() if kind is ConfigKind.POLICY}
    for (_, name), stored in documents.items():
        match stored.body:
            case RouteDocument() as route if route.is_alias and not is_pattern(name):
                aliases[name] = route.targets[0].model
            case RouteDocument() as route:
                routes[name] = model_routes.compile_route(name, stored.version, route, rollouts.get(name))
            case PlanDocument() as plan:
                plans[name] = plan
            case ModelLimitDocument() as limits:
                model_limits[ModelName(name)] = tier_plan(tiers.NO_LIMITS, limits, f"model limit {name}")
            case DefaultModelDocument() as chosen if name == DEFAULT_MODEL:
                default = chosen.model
            case PolicyDocument() as policy:
                policies[name] = policy
            case UpstreamPriceDocument() as price:
                prices[ModelName(name)] = upstream_prices.compiled(price)
    names = ModelNames(aliases, default, routes=routes)
    return ConfigSnapshot(
        revision=revision,
        names=names,
        route_names=replace(names, only_routes=True),
        limits=LimitRules(_all_plans(plans), model_limits),
        policies=Policies(policies, policy_revisions),
        upstream_prices=prices,
    )


def _all_plans(documents: Mapping[PlanName, PlanDocument]) -> dict[PlanName, TierPlan]:
    """Return the built-in plans and those of the documents; what a plan that isn't built in leaves out is as in `free`."""
    plans = dict(tiers.DEFAULTS)
    for name in sorted(documents, key=lambda name: (name not in tiers.DEFAULTS, name)):
        plans[name] = tier_plan(plans.get(name, plans[Tier.FREE]), documents[name], f"plan {name}")
    return plans


def tier_plan(base: TierPlan, document: PlanDocument | ModelLimitDocument, source: str) -> TierPlan:
    """Return the limits with the document's numbers; ``source`` names the document, for people."""
    given = {name: number for name in tiers.NUMBERS if (number := getattr(document, name, None)) is not None}
    numbers = {name: None if number == UNLIMITED else number for name, number in given.items()}
    return tiers.with_numbers(base, numbers, source)


def plan_document(tier: Tier, plan: TierPlan) -> PlanDocument:
    """Return a document that states the plan's numbers, without those that have no limit by default either: gateways that don't know a new
    kind of limit refuse a document that names it."""
    numbers = {name: getattr(plan, name) for name in tiers.NUMBERS}
    stated = {name: number for name, number in numbers.items() if number is not None or getattr(tiers.DEFAULTS[tier], name) is not None}
    return PlanDocument(**{name: UNLIMITED if number is None else number for name, number in stated.items()})


def limit_document(plan: TierPlan) -> ModelLimitDocument:
    return ModelLimitDocument(**{name: number for name in BY_NAME if (number := getattr(plan, name)) is not None})
