"""RPC for policies: read, change and explain them. Organizations and holders of keys change their own, within the mesh's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec

from services.gateway.configuration import config_checks
from services.gateway.configuration.live_configuration import Bodies, LiveConfiguration
from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.facts.policies import BUILT_IN, NameLists, Policy
from services.gateway.facts.unreadable import Unreadable
from services.gateway.guard import guard_checks, guard_test, own_patterns
from services.gateway.limits.quotas import Quotas
from shared import access_table, amounts, errors
from shared.api import auth, organizations
from shared.api import configuration as api
from shared.api.organizations import TeamRole
from shared.config_documents import (
    ANY_PROVIDER,
    FIXED_NAMES,
    KEY_POLICY,
    MESH_POLICY,
    ORGANIZATION_POLICY,
    ConfigKind,
    Flex,
    GuardDocument,
    Machines,
    ModerationRule,
    PolicyDocument,
)
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import KeyId, Permission, RequestId, TenantId

_ASK = "ask an administrator to change the policy mesh"
_WHO_MAY = "owners of the organization, the key's creator and administrators may; a key can't change its own policy"


@dataclass(frozen=True, slots=True)
class _Rights:
    """What a caller may do with a policy."""

    may_change: bool
    #: The tenant that they write for; None for an administrator.
    tenant: TenantId | None = None


class PolicyRpc:
    def __init__(self, live: LiveConfiguration, rpc: RpcClient, audit_reporting: AuditReporting, quotas: Quotas) -> None:
        self._live = live
        self._rpc = rpc
        self._quotas = quotas
        self._audit_reporting = audit_reporting

    @serves(api.get_policy)
    async def get(self, request: api.GetPolicy, call: RpcCall) -> api.PolicyState:
        """Leave out what the guardrails of ``mesh`` and ``default`` look for, except for administrators. Raises NotFound for an
        organization or key of others."""
        name = request.name or f"{ORGANIZATION_POLICY}{call.principal.tenant_id}"
        may_change = (await self._find_rights(name, call)).may_change
        await self._live.reload()
        state = self._state(name, may_change=may_change)
        if may_change or name not in FIXED_NAMES[ConfigKind.POLICY] or state.policy is None or state.policy.guard is None:
            return state
        guard = state.policy.guard
        shown = GuardDocument(prompt=guard.prompt, answer=guard.answer, moderation=guard.moderation)
        return msgspec.structs.replace(state, policy=msgspec.structs.replace(state.policy, guard=shown))

    @serves(api.set_policy)
    async def set(self, request: api.SetPolicy, call: RpcCall) -> api.PolicyState:
        """Raises NotAllowed, also for more than the mesh allows, AlreadyExists after a newer version, Limited, and
        BadRequest."""
        rights = await self._find_rights(request.name, call)
        if not rights.may_change:
            raise errors.NotAllowed(f"you may not change the policy {request.name}", hint=_WHO_MAY)
        if request.policy is not None and rights.tenant is not None:
            _check_patterns(request.policy)
        for path, text in () if request.policy is None else config_checks.check_body(request.policy, guard_checks.check):
            raise errors.BadRequest(f"{'.'.join(map(str, path))} {text}", hint="see docs/howto/policies-and-guardrails.md")
        key: DocumentKey = ConfigKind.POLICY, request.name

        def check(_revision: int, documents: Mapping[DocumentKey, StoredDocument]) -> Bodies:
            version, _ = _version_of(documents.get(key))
            if request.expected_version not in (None, version):
                raise errors.AlreadyExists(
                    f"the policy {request.name} has changed: it is at version {version}, not {request.expected_version}",
                    hint="read it with `aicli policy show`, then change it again",
                )
            if request.policy is not None and request.name.startswith((ORGANIZATION_POLICY, KEY_POLICY)):
                _check_ceiling(request.policy, _version_of(documents.get((ConfigKind.POLICY, MESH_POLICY)))[1])
            return {key: request.policy}

        await self._live.change(check, origin="applied", author=call.principal.user_id, note=request.note, tenant=rights.tenant)
        await self._live.reload()
        self._audit_reporting.report_action("policy.set", call.principal, target=request.name)
        return self._state(request.name, may_change=True)

    @serves(api.explain_policy)
    async def explain(self, request: api.ExplainPolicy, call: RpcCall) -> api.PolicyExplanation:
        """Raises NotFound for an organization or key of others."""
        return api.PolicyExplanation(tuple(explain(await self._find_policy(request.organization, request.key, call))))

    @serves(api.test_guard)
    async def test_guard(self, request: api.GuardText, call: RpcCall) -> api.GuardTest:
        """Raises NotFound for an organization or key of others, and what ``Quotas.spend`` raises: it counts as a request of the caller."""
        guard = (await self._find_policy(request.organization, request.key, call)).guard
        limits, seconds = self._quotas.limits(call.principal), call.remaining_seconds()
        usage = await self._quotas.spend(limits, RequestId(uuid4()), tier=call.principal.tier, tokens=0, seconds=seconds)
        try:
            return await guard_test.run(request.text, guard.answer if request.is_answer else guard.prompt, is_answer=request.is_answer)
        finally:
            await self._quotas.settle(usage, tokens=0)

    async def _find_policy(self, tenant: TenantId | None, key: KeyId | None, call: RpcCall) -> Policy:
        """Return what applies to the organization and the key, by default to the caller. Raises NotFound."""
        principal = call.principal
        if tenant is None and key is None:
            tenant, key = principal.tenant_id, principal.key_id
        elif not access_table.may(principal, Permission.EVERYTHING):
            if key is not None:
                tenant = _tenant_of(await self._find_key(key, call))
            elif tenant is not None:
                await self._role_in(tenant, call)
        return self._live.config.policies.find(tenant, key)

    def _state(self, name: str, *, may_change: bool) -> api.PolicyState:
        return api.PolicyState(name, *_version_of(self._live.documents.get((ConfigKind.POLICY, name))), may_change)

    async def _find_rights(self, name: str, call: RpcCall) -> "_Rights":
        """Raises NotFound if the caller may not even read it."""
        principal = call.principal
        if access_table.may(principal, Permission.EVERYTHING):
            return _Rights(may_change=True)
        if name.startswith(ORGANIZATION_POLICY):
            tenant = TenantId(_id(name, ORGANIZATION_POLICY))
            return _Rights(may_change=await self._role_in(tenant, call) is TeamRole.OWNER, tenant=tenant)
        if name.startswith(KEY_POLICY):
            # Auth lists a key only for its creator and the owners of its organization.
            key = await self._find_key(KeyId(_id(name, KEY_POLICY)), call)
            return _Rights(may_change=key.id != principal.key_id, tenant=_tenant_of(key))
        return _Rights(may_change=False)

    async def _role_in(self, tenant: TenantId, call: RpcCall) -> TeamRole | None:
        """Raises NotFound for an organization of others."""
        if tenant == TenantId(call.principal.user_id):
            return TeamRole.OWNER
        found = await self._rpc.call(organizations.get_organisation, organizations.GetOrganization(tenant), credential=call.credential)
        return found.organisation.role

    async def _find_key(self, key: KeyId, call: RpcCall) -> auth.ApiKey:
        found = await self._rpc.call(auth.list_api_keys, auth.ListApiKeys(), credential=call.credential)
        now = datetime.now(UTC)
        for each in found.keys:
            if each.id == key and each.is_active and (each.expires_at is None or each.expires_at > now):
                return each
        raise errors.NotFound(f"you have no active key {key}; a key's policy ends with it", hint="see `aicli keys list`")


def _version_of(stored: StoredDocument | None) -> tuple[int, PolicyDocument | None]:
    """Return the current version of a policy, 0 if there never was one. Raises ConfigUnreadable."""
    if stored is None:
        return 0, None
    if isinstance(stored.body, Unreadable):
        raise stored.body.problem()
    assert stored.body is None or isinstance(stored.body, PolicyDocument)  # by its kind
    return stored.version, stored.body


def _id(name: str, prefix: str) -> UUID:
    """Raises BadRequest."""
    try:
        return UUID(name.removeprefix(prefix))
    except ValueError as error:
        raise errors.BadRequest(f"{name[:60]!r} has no valid id", hint="see `aicli policy show --help`") from error


def _tenant_of(key: auth.ApiKey) -> TenantId:
    return TenantId(key.user_id) if key.team_id is None else key.team_id


def _check_ceiling(wanted: PolicyDocument, mesh: PolicyDocument | None) -> None:
    """Raise NotAllowed if the policy names providers or machines that the mesh's policy forbids: they would have no effect."""
    allowed = () if mesh is None or mesh.external is None else mesh.external
    if ANY_PROVIDER not in allowed:
        for provider in wanted.external or ():
            if provider not in (*allowed, ANY_PROVIDER):
                raise errors.NotAllowed(
                    f"the mesh's policy does not allow the provider {provider}; it allows {', '.join(allowed) or 'none'}", hint=_ASK
                )
    widest = Machines.GROUP if mesh is None or mesh.machines is None else mesh.machines
    if wanted.machines is not None and widest.is_narrower_than(wanted.machines):
        raise errors.NotAllowed(f"the mesh's policy allows no more machines than {widest}", hint=_ASK)


def _check_patterns(policy: PolicyDocument) -> None:
    """Raise BadRequest for patterns that only administrators may set."""
    if policy.guard is not None and (found := own_patterns.check_bounds(policy.guard.patterns)):
        raise errors.BadRequest(f"guard.patterns{found}", hint="ask an administrator to set more")


# --- explanations ---------------------------------------------------------------------------------------------------------


def explain(policy: Policy) -> Iterator[api.PolicyRule]:
    """Yield the rules for people."""
    providers = policy.placement.external
    yield api.PolicyRule("external", "all" if ANY_PROVIDER in providers else ", ".join(providers) or "none", _levels(policy.external))
    yield api.PolicyRule("machines", policy.machines.value, (policy.machines.level,))
    yield api.PolicyRule("models", _patterns(policy.models), _levels(policy.models))
    yield api.PolicyRule("targets", _patterns(policy.targets), _levels(policy.targets))
    yield api.PolicyRule("direct_models", "yes" if policy.direct_models.value else "no", (policy.direct_models.level,))
    for name, rule in (("max_price.input", policy.max_input), ("max_price.output", policy.max_output)):
        yield api.PolicyRule(name, "any" if rule.value is None else amounts.written(rule.value), (rule.level,))
    yield api.PolicyRule("show_targets", "yes" if policy.show_targets.value else "no", (policy.show_targets.level,))
    yield api.PolicyRule("store_items", "yes" if policy.store_items.value else "no", (policy.store_items.level,))
    yield api.PolicyRule("stored_prompts", policy.stored_prompts.value, (policy.stored_prompts.level,))
    flex = "allowed" if policy.live.value else Flex.ONLY
    closed = () if policy.live.value else (policy.live.level,)
    if not policy.flex.value:
        flex, closed = Flex.NEVER if policy.live.value else "none", (*closed, policy.flex.level)
    yield api.PolicyRule("flex", flex, closed or (policy.flex.level,))
    for place, scan in (("prompt", policy.guard.prompt), ("answer", policy.guard.answer)):
        for kind, action in scan.actions.items():
            yield api.PolicyRule(f"guard.{place}.{kind}", action.value, (scan.levels[kind],))
    for leveled in policy.guard.moderation:
        yield api.PolicyRule("guard.moderation", _describe_moderation(leveled.rule), (leveled.level,))


def _describe_moderation(rule: ModerationRule) -> str:
    what = ", ".join(rule.categories) or "all categories"
    least = "" if rule.threshold is None else f" from {rule.threshold:g}"
    return f"{rule.route}: prompt {rule.prompt}, answer {rule.answer}, {what}{least}, on error {rule.on_error}"


def _levels(lists: NameLists) -> tuple[str, ...]:
    return tuple(names.level for names in lists) or (BUILT_IN,)


def _patterns(lists: NameLists) -> str:
    """Describe the lists, each of which a name must match."""
    return " and ".join(", ".join(names.names) or "none" for names in lists) or "all"
