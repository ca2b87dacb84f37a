"""The configuration of one revision, as requests use it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

from services.gateway.facts import model_routes, tiers, upstream_prices
from services.gateway.facts.model_names import ModelNames, VersionedNames
from services.gateway.facts.model_routes import OpenRollout, Route
from services.gateway.facts.plan_offers import PlanOffer
from services.gateway.facts.policies import Policies
from services.gateway.facts.tiers import LimitRules, TierPlan
from services.gateway.facts.upstream_prices import UpstreamPrice
from shared.config_documents import (
    DEFAULT_MODEL,
    UNLIMITED,
    CatalogDocument,
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
    #: The plans as they are now, by name.
    offers: Mapping[PlanName, PlanOffer] = field(default_factory=lambda: _offers({}, tiers.DEFAULTS))
    policies: Policies = field(default_factory=Policies)
    upstream_prices: Mapping[ModelName, UpstreamPrice] = field(default_factory=dict)
    #: Models that the built-in catalog lacks, or knows less about.
    catalog: Mapping[str, CatalogDocument] = field(default_factory=dict)
    #: Versions of the registry.
    models: VersionedNames = field(default_factory=VersionedNames)
    #: For callers whose policy forbids ``direct_models``.
    route_names: ModelNames = field(default_factory=lambda: ModelNames({}, None, only_routes=True))


#: Name and version of a plan's document.
PlanVersions = Mapping[tuple[PlanName, int], PlanDocument]
NO_VERSIONS: PlanVersions = MappingProxyType({})
NO_MODELS = VersionedNames()
NO_ROLLOUTS: Mapping[str, OpenRollout] = MappingProxyType({})


class ConfigSource(Protocol):
    """Has the current snapshot. A request reads it once, and uses the same snapshot to its end."""

    @property
    def config(self) -> ConfigSnapshot: ...


def build(
    revision: int,
    documents: Mapping[DocumentKey, StoredDocument],
    rollouts: Mapping[str, OpenRollout] = NO_ROLLOUTS,
    plan_versions: PlanVersions = NO_VERSIONS,
    models: VersionedNames = NO_MODELS,
) -> ConfigSnapshot:
    """Build the snapshot of a revision. ``rollouts``: the open ones, by route. ``plan_versions``: all that are kept."""
    plans: dict[PlanName, PlanDocument] = {}
    model_limits: dict[ModelName, TierPlan] = {}
    aliases: dict[str, str] = {}
    routes: dict[str, Route] = {}
    prices: dict[ModelName, UpstreamPrice] = {}
    catalog: dict[str, CatalogDocument] = {}
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
            case CatalogDocument() as model:
                catalog[name] = model
    names = ModelNames({**models.aliases, **aliases}, default, routes=routes, owners=models.owners)
    all_plans = _all_plans(plans, plan_versions)
    return ConfigSnapshot(
        revision=revision,
        names=names,
        route_names=replace(names, only_routes=True),
        limits=LimitRules(all_plans, model_limits),
        offers=_offers(documents, all_plans),
        policies=Policies(policies, policy_revisions),
        upstream_prices=prices,
        catalog=catalog,
        models=models,
    )


def _all_plans(documents: Mapping[PlanName, PlanDocument], versions: PlanVersions) -> dict[PlanName, TierPlan]:
    """Return the built-in plans, those of the documents, and their versions by names such as `pro@3`; what a plan that isn't built in
    leaves out is as in `free`, but nobody may choose it."""
    plans = dict(tiers.DEFAULTS)

    def plan(name: PlanName, document: PlanDocument) -> TierPlan:
        base = tiers.DEFAULTS[name] if name in tiers.DEFAULTS else replace(plans[Tier.FREE], for_sale=False)
        return _sold(tier_plan(base, document, f"plan {name}"), document)

    for name in sorted(documents, key=lambda name: (name not in tiers.DEFAULTS, name)):
        plans[name] = plan(name, documents[name])
    return plans | {f"{name}@{version}": plan(name, document) for (name, version), document in versions.items()}


def _offers(documents: Mapping[DocumentKey, StoredDocument], plans: Mapping[PlanName, TierPlan]) -> dict[PlanName, PlanOffer]:
    versions = {name: stored.version for (kind, name), stored in documents.items() if kind is ConfigKind.PLAN and stored.body is not None}
    return {name: PlanOffer(name, versions.get(name, 0), plan) for name, plan in plans.items() if name == tiers.name_of(name)}


def _sold(plan: TierPlan, document: PlanDocument) -> TierPlan:
    """Return the plan with what the document says about money."""
    changes: dict[str, Any] = {}
    if document.fee is not None:
        changes["fee_micro"] = upstream_prices.micro(document.fee)
    if document.overage_limit is not None:
        changes["overage_micro"] = None if document.overage_limit == UNLIMITED else upstream_prices.micro(document.overage_limit)
    for name in ("flex", "for_sale", "stripe_price", "stripe_meter", "paddle_price"):
        if (given := getattr(document, name)) is not None:
            changes[name] = given
    return replace(plan, **changes)


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
    for name in tiers.NEW_NUMBERS:
        if getattr(plan, name) == getattr(tiers.DEFAULTS[tier], name):
            stated.pop(name, None)
    return PlanDocument(**{name: UNLIMITED if number is None else number for name, number in stated.items()})  # type: ignore[arg-type]


def limit_document(plan: TierPlan) -> ModelLimitDocument:
    return ModelLimitDocument(**{name: number for name in BY_NAME if (number := getattr(plan, name)) is not None})
