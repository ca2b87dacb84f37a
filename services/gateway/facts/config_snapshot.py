"""The configuration of one revision, as requests use it. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from services.gateway.facts import model_routes, tiers, upstream_prices
from services.gateway.facts.model_names import ModelNames, VersionedNames
from services.gateway.facts.model_routes import OpenRollout, Route
from services.gateway.facts.plan_offers import PlanOffer
from services.gateway.facts.policies import Policies, Policy
from services.gateway.facts.tiers import LimitRules, TierPlan
from services.gateway.facts.unreadable import Unreadable
from services.gateway.facts.upstream_prices import UpstreamPrice
from shared import config_releases, plan_names
from shared.api.auth import Principal
from shared.config_documents import (
    DEFAULT_MODEL,
    MESH_POLICY,
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
from shared.protocol.directory import DirectoryEntry
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
    body: Document | Unreadable | None
    #: Whose people wrote it, so that it counts against the tenant's bounds; None if an administrator did.
    tenant: TenantId | None = None
    #: Bytes of the body as JSON.
    size: int = 0
    #: The oldest release whose gateways may answer requests while it is current.
    needs_release: str = config_releases.OLDEST

    @property
    def usable(self) -> Document | None:
        """Return what requests use: of a kind that doesn't restrict, perhaps an older version."""
        return self.body.instead if isinstance(self.body, Unreadable) else self.body


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
    #: The current documents that this gateway can't read.
    unreadable: tuple[Unreadable, ...] = ()
    #: The names of all trust documents.
    trusts: tuple[str, ...] = ()
    #: The oldest release whose gateways may answer requests.
    needs_release: str = config_releases.OLDEST

    def terms_of(self, principal: Principal, *, forbids_external: bool = False) -> "Terms":
        """Raises ConfigUnreadable for the caller's policy."""
        policy = self.policies.of(principal, forbids_external=forbids_external)
        return Terms(principal, policy, self, self.names_under(policy, principal.tenant_id))

    def names_under(self, policy: Policy, tenant: TenantId) -> ModelNames:
        """Return the names that callers of this tenant may use under their policy."""
        return (self.names if policy.direct_models.value else self.route_names).seen_by(tenant)

    def check_models(self, models: Iterable[ModelName], workers: Iterable[DirectoryEntry]) -> None:
        """Raise ConfigUnreadable for a model whose trust or server document can't be read."""
        if not self.unreadable:
            return
        wanted = frozenset(models)
        for model in wanted:
            if (trust := _find_trust(model, self.trusts, self.unreadable)) is not None:
                raise trust.problem()
        servers = {found.name: found for found in self.unreadable if found.kind == ConfigKind.SERVER}
        for worker in workers if servers else ():
            for offer in worker.announcement.models:
                # Nothing says which server of the operator's own an offer is from.
                server = next(iter(servers.values())) if offer.is_upstream and not offer.provider else servers.get(offer.provider)
                if offer.name in wanted and server is not None:
                    raise server.problem()


class Terms(msgspec.Struct, frozen=True):
    """What the configuration of a request's start says of its caller."""

    principal: Principal
    policy: Policy
    config: ConfigSnapshot
    names: ModelNames

    def runs_as_batch(self, wanted: bool | None) -> bool:
        """Return whether a request runs behind live ones. Raises ConfigUnreadable for the caller's plan, or PolicyForbidden."""
        return self.policy.runs_as_batch(wanted, self.config.limits.plan_of(self.principal.tier).flex)


#: Name and version of a plan's document.
PlanVersions = Mapping[tuple[PlanName, int], PlanDocument | Unreadable]
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
    *,
    unknown: Collection[Unreadable] = (),
) -> ConfigSnapshot:
    """Build the snapshot of a revision. ``rollouts``: the open ones, by route. ``plan_versions``: all that are kept. ``unknown``: documents
    of kinds that only a newer release knows, and that restrict."""
    plans: dict[PlanName, PlanDocument | Unreadable] = {}
    model_limits: dict[ModelName, TierPlan] = {}
    aliases: dict[str, str] = {}
    routes: dict[str, Route] = {}
    prices: dict[ModelName, UpstreamPrice] = {}
    catalog: dict[str, CatalogDocument] = {}
    default: str | None = None
    policies: dict[str, PolicyDocument] = {}
    unreadable = _find_unreadable(documents, unknown)
    policy_revisions = {name: stored.revision for (kind, name), stored in documents.items() if kind is ConfigKind.POLICY}
    for (_, name), stored in documents.items():
        match stored.usable:
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
    plans |= unreadable[ConfigKind.PLAN]
    model_limits |= _unreadable_limits(unreadable[ConfigKind.MODEL_LIMIT])
    names = ModelNames(
        {**models.aliases, **aliases},
        default,
        routes=routes,
        owners=models.owners,
        revoked=models.revoked,
        unreadable=unreadable[ConfigKind.ROUTE],
    )
    by_plan = all_plans(plans, plan_versions)
    return ConfigSnapshot(
        revision=revision,
        names=names,
        route_names=replace(names, only_routes=True),
        limits=LimitRules(by_plan, model_limits),
        offers=_offers(documents, by_plan),
        policies=Policies(policies, policy_revisions, unreadable[ConfigKind.POLICY]),
        upstream_prices=prices,
        catalog=catalog,
        models=models,
        unreadable=tuple(chain.from_iterable(by_name.values() for by_name in unreadable.values())),
        trusts=tuple(name for (kind, name), stored in documents.items() if kind is ConfigKind.TRUST and stored.body is not None),
        needs_release=_find_needed(documents, unknown),
    )


def _unreadable_limits(unreadable: Mapping[str, Unreadable]) -> dict[ModelName, TierPlan]:
    return {ModelName(name): replace(tiers.NO_LIMITS, unreadable=found) for name, found in unreadable.items()}


def _find_needed(documents: Mapping[DocumentKey, StoredDocument], unknown: Iterable[Unreadable]) -> str:
    needed = {config_releases.OLDEST, *(stored.needs_release for stored in documents.values()), *(found.release for found in unknown)}
    return max(needed, key=config_releases.order)


def _find_unreadable(
    documents: Mapping[DocumentKey, StoredDocument], unknown: Iterable[Unreadable]
) -> dict[ConfigKind, dict[str, Unreadable]]:
    found = {kind: dict[str, Unreadable]() for kind in ConfigKind}
    for (kind, name), stored in documents.items():
        if isinstance(stored.body, Unreadable):
            found[kind][name] = stored.body
    # Nobody can say whom a document of an unknown kind restricts.
    found[ConfigKind.POLICY].update((MESH_POLICY, each) for each in unknown)
    return found


def _find_trust(model: ModelName, trusts: Iterable[str], unreadable: Iterable[Unreadable]) -> Unreadable | None:
    """Return the trust document of a model if it can't be read. As ``trust_rules.find_rules``: the longest name counts."""
    found = dict.fromkeys(trusts) | {one.name: one for one in unreadable if one.kind == ConfigKind.TRUST}
    forms = model, model.partition("@")[0]
    matching = [name for name in found if name in forms or (is_pattern(name) and model.startswith(name[:-1]))]
    return found[max(matching, key=lambda name: (not is_pattern(name), len(name)))] if matching else None


def all_plans(documents: Mapping[PlanName, PlanDocument | Unreadable], versions: PlanVersions = NO_VERSIONS) -> dict[PlanName, TierPlan]:
    """Return the built-in plans, those of the documents, and their versions by names such as `pro@3`; what a plan that isn't built in
    leaves out is as in `free`, but nobody may choose it, and with a fee its limits are those of `pro`. Nobody may choose one that can't be
    read either."""
    plans = dict(tiers.DEFAULTS)

    def plan(name: PlanName, document: PlanDocument | Unreadable) -> TierPlan:
        base = tiers.DEFAULTS[name] if name in tiers.DEFAULTS else _own_base(plans, document)
        if isinstance(document, Unreadable):
            return replace(base, for_sale=False, unreadable=document)
        return _sold(tier_plan(base, document, f"plan {name}"), document)

    for name in sorted(documents, key=lambda name: (name not in tiers.DEFAULTS, name)):
        plans[name] = plan(name, documents[name])
    return plans | {f"{name}@{version}": plan(name, document) for (name, version), document in versions.items()}


def _own_base(plans: Mapping[PlanName, TierPlan], document: PlanDocument | Unreadable) -> TierPlan:
    free, pro = replace(plans[Tier.FREE], for_sale=False), plans[Tier.PRO]
    if isinstance(document, Unreadable) or not upstream_prices.micro(document.fee or 0.0):
        return free
    # Not the tokens: the seller has to name what a customer gets for the fee.
    changes: dict[str, Any] = {name: getattr(pro, name) for name in tiers.NUMBERS if name != "included_tokens"}
    return replace(free, unreadable=free.unreadable or pro.unreadable, sources=pro.sources, **changes)


def _offers(documents: Mapping[DocumentKey, StoredDocument], plans: Mapping[PlanName, TierPlan]) -> dict[PlanName, PlanOffer]:
    versions = {name: stored.version for (kind, name), stored in documents.items() if kind is ConfigKind.PLAN and stored.body is not None}
    return {name: PlanOffer(name, versions.get(name, 0), plan) for name, plan in plans.items() if name == plan_names.name_of(name)}


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
