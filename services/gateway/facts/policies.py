"""Decides what callers may use. Pure.

The policies of the mesh, of the organization (or else the default one), of the key and of the request are combined into one; each level
can only add restrictions.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

import msgspec

from services.gateway.facts import guardrails, placements, upstream_prices
from services.gateway.facts.guardrails import NO_GUARD, Guardrails
from services.gateway.facts.placements import ANYWHERE, Placement
from services.gateway.facts.unreadable import Unreadable
from shared import errors
from shared.api.auth import Principal
from shared.api.ledger import ModelPrice
from shared.config_documents import (
    ANY_PROVIDER,
    DEFAULT_POLICY,
    KEY_POLICY,
    MESH_POLICY,
    ORGANIZATION_POLICY,
    Flex,
    Machines,
    Money,
    PolicyDocument,
    StoredPrompts,
)
from shared.protocol.directory import DirectoryEntry
from shared.types import KeyId, TenantId

#: The level of rules that no document sets.
BUILT_IN = "built-in"
#: The level of the header `X-Aimesh-External: forbid`.
REQUEST = "request"

Value = TypeVar("Value")


def open_to(tenant: TenantId, policy: "Policy", workers: Iterable[DirectoryEntry]) -> list[DirectoryEntry]:
    """Return the workers that may see the tenant's prompts, with the models for which they may."""
    found = []
    for worker in workers:
        offers = worker.announcement.models
        allowed = tuple(
            offer
            for offer in offers
            if placements.barrier(tenant, policy.placement, worker.announcement, offer) is None and policy.allows_target(offer.name)
        )
        if len(allowed) == len(offers):
            found.append(worker)
        elif allowed:
            found.append(replace(worker, announcement=msgspec.structs.replace(worker.announcement, models=allowed)))
    return found


@dataclass(frozen=True, slots=True)
class Rule(Generic[Value]):
    """A value, and the level that it comes from."""

    value: Value
    level: str = BUILT_IN


@dataclass(frozen=True, slots=True)
class NameList:
    """Names or patterns, and the level that lists them."""

    names: tuple[str, ...]
    level: str

    def has(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.names)


NameLists = tuple[NameList, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What applies to one caller: all levels combined."""

    placement: Placement = ANYWHERE
    machines: Rule[Machines] = field(default_factory=lambda: Rule(Machines.GROUP))
    #: A provider must be in each list, a name must match each list.
    external: NameLists = ()
    models: NameLists = ()
    targets: NameLists = ()
    direct_models: Rule[bool] = field(default_factory=lambda: Rule(True))
    show_targets: Rule[bool] = field(default_factory=lambda: Rule(True))
    store_items: Rule[bool] = field(default_factory=lambda: Rule(True))
    stored_prompts: Rule[StoredPrompts] = field(default_factory=lambda: Rule(StoredPrompts.NEVER))
    #: Requests behind live ones, and these.
    flex: Rule[bool] = field(default_factory=lambda: Rule(True))
    live: Rule[bool] = field(default_factory=lambda: Rule(True))
    #: Micro-credits per million tokens; None for no ceiling.
    max_input: Rule[int | None] = field(default_factory=lambda: Rule(None))
    max_output: Rule[int | None] = field(default_factory=lambda: Rule(None))
    guard: Guardrails = NO_GUARD

    @property
    def limits_targets(self) -> bool:
        """Return whether it allows only some models to serve a request."""
        return bool(self.targets) or self.max_input.value is not None or self.max_output.value is not None

    def allows_name(self, name: str) -> bool:
        """Return whether the caller may name this model."""
        return all(allowed.has(name) for allowed in self.models)

    def allows_target(self, model: str) -> bool:
        return all(allowed.has(model) for allowed in self.targets)

    def allows_price(self, price: ModelPrice) -> bool:
        ceilings = ((self.max_input, price.input_micro_per_million), (self.max_output, price.output_micro_per_million))
        return all(most.value is None or micro <= most.value for most, micro in ceilings)

    def runs_as_batch(self, wanted: bool | None, of_plan: Flex) -> bool:
        """Return whether a request runs behind live ones: as the caller wants it, or as these rules and its plan say. Raises
        PolicyForbidden."""
        flex, live = self.flex, self.live
        if of_plan is not Flex.ALLOWED:
            plan = Rule(False, "plan")
            flex, live = (plan, live) if of_plan is Flex.NEVER else (flex, plan)
        chosen = not live.value if wanted is None else wanted
        if chosen and not flex.value:
            raise errors.PolicyForbidden(f"flex requests are not allowed here (level: {flex.level})", hint="leave service_tier out")
        if not chosen and not live.value:
            raise errors.PolicyForbidden(f"only flex requests are allowed here (level: {live.level})", hint="send service_tier: flex")
        return chosen


@dataclass(frozen=True, slots=True)
class Policies:
    """The documents by name, and how they apply to callers."""

    documents: Mapping[str, PolicyDocument] = field(default_factory=dict)
    #: The revision that last changed or removed each of them.
    revisions: Mapping[str, int] = field(default_factory=dict)
    #: The documents that this gateway can't read, by name.
    unreadable: Mapping[str, Unreadable] = field(default_factory=dict)
    #: Combined before.
    _known: dict[tuple[str | None, str | None, bool], Policy] = field(default_factory=dict, compare=False, repr=False)

    def of(self, caller: Principal, *, forbids_external: bool = False) -> Policy:
        """Raises ConfigUnreadable."""
        return self.find(caller.tenant_id, caller.key_id, forbids_external=forbids_external)

    def find(self, tenant: TenantId | None, key: KeyId | None = None, *, forbids_external: bool = False) -> Policy:
        """Return the policy of an organization and a key; None stands for one without its own rules. Raises ConfigUnreadable."""
        mesh, default, of_tenant, of_key = names_of(tenant, key)
        if self.unreadable:
            base = default if of_tenant not in self.documents else of_tenant
            for name in (mesh, of_tenant, base, of_key):
                if (found := self.unreadable.get(name)) is not None:
                    raise found.problem()
        names = of_tenant if of_tenant in self.documents else None, of_key if of_key in self.documents else None
        known = self._known.get((*names, forbids_external))
        if known is None:
            levels = list(self._levels(*names))
            if forbids_external:
                levels.append((REQUEST, PolicyDocument(external=())))
            known = self._known[*names, forbids_external] = combine(levels)
        return known

    def revision_of(self, tenant: TenantId) -> int:
        """Return when the policies that apply to all of a tenant's keys have last changed."""
        mesh, default, of_tenant, _ = names_of(tenant, None)
        return max(self.revisions.get(name, 0) for name in (mesh, default, of_tenant))

    def _levels(self, of_tenant: str | None, of_key: str | None) -> Iterator[tuple[str, PolicyDocument]]:
        missing = PolicyDocument()
        yield MESH_POLICY, _with_list(self.documents.get(MESH_POLICY, missing))
        if of_tenant is not None:
            yield "organization", _with_list(self.documents[of_tenant])
        else:
            yield DEFAULT_POLICY, _with_list(self.documents.get(DEFAULT_POLICY, missing))
        if of_key is not None:
            yield "key", self.documents[of_key]


def names_of(tenant: TenantId | None, key: KeyId | None) -> tuple[str, str, str, str]:
    """Return the names of the policies that may apply to a caller, the widest first."""
    return MESH_POLICY, DEFAULT_POLICY, f"{ORGANIZATION_POLICY}{tenant}", f"{KEY_POLICY}{key}"


def _with_list(document: PolicyDocument) -> PolicyDocument:
    """Return the policy with an empty list of providers if it has none, for the levels that must list them."""
    return document if document.external is not None else msgspec.structs.replace(document, external=())


def combine(levels: list[tuple[str, PolicyDocument]]) -> Policy:
    machines, direct, shown, stored = Rule(Machines.GROUP), Rule(True), Rule(True), Rule(True)
    prompts, flex, live = Rule(StoredPrompts.NEVER), Rule(True), Rule(True)
    max_input: Rule[int | None] = Rule(None)
    max_output: Rule[int | None] = Rule(None)
    for level, document in levels:
        if document.machines is not None and document.machines.is_narrower_than(machines.value):
            machines = Rule(document.machines, level)
        if document.direct_models is False and direct.value:
            direct = Rule(False, level)
        if document.show_targets is False and shown.value:
            shown = Rule(False, level)
        if document.store_items is False and stored.value:
            stored = Rule(False, level)
        if document.stored_prompts is not None and (level == MESH_POLICY or document.stored_prompts is StoredPrompts.NEVER):
            prompts = Rule(document.stored_prompts, level)
        if document.flex is Flex.NEVER and flex.value:
            flex = Rule(False, level)
        if document.flex is Flex.ONLY and live.value:
            live = Rule(False, level)
        if document.max_price is not None:
            max_input = _lower(max_input, document.max_price.input, level)
            max_output = _lower(max_output, document.max_price.output, level)
    external = _lists_of(levels, "external")
    return Policy(
        placement=Placement(machines.value, _common(external)),
        machines=machines,
        external=external,
        models=_lists_of(levels, "models"),
        targets=_lists_of(levels, "targets"),
        direct_models=direct,
        show_targets=shown,
        store_items=stored,
        stored_prompts=prompts,
        flex=flex,
        live=live,
        max_input=max_input,
        max_output=max_output,
        guard=guardrails.combine([(level, document.guard) for level, document in levels if document.guard is not None]),
    )


def _lower(known: Rule[int | None], wanted: Money | None, level: str) -> Rule[int | None]:
    if wanted is None:
        return known
    micro = upstream_prices.micro(wanted)
    return Rule(micro, level) if known.value is None or micro < known.value else known


def _lists_of(levels: list[tuple[str, PolicyDocument]], rule: str) -> NameLists:
    return tuple(NameList(names, level) for level, document in levels if (names := getattr(document, rule)) is not None)


def _common(lists: NameLists) -> tuple[str, ...]:
    """Return the providers that all lists allow."""
    exact = [set(names.names) for names in lists if ANY_PROVIDER not in names.names]
    if not exact:
        return (ANY_PROVIDER,)
    return tuple(sorted(set.intersection(*exact)))
