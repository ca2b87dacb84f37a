"""RPC methods about organizations and their members."""

from datetime import UTC, datetime

import msgspec

from services.auth import audit_records, roles
from services.auth.dependencies import Dependencies
from services.auth.organizations import membership_rules
from services.auth.organizations.organization_store import OrganizationStore
from shared.api import events
from shared.api import organizations as api
from shared.api.method import Nothing
from shared.api.organizations import Organization, OrganizationDetails
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

_log = logs.get(part="auth")


class OrganizationRpc:
    def __init__(self, parts: Dependencies, organisations: OrganizationStore) -> None:
        self._node = parts.node
        self._most_founded = parts.settings.organisations_per_user
        self._trail = parts.trail
        self._organisations = organisations

    @serves(api.create_organisation)
    async def create_organisation(self, request: api.CreateOrganization, call: RpcCall) -> Organization:
        caller, name = call.principal, membership_rules.check_name(request.name)
        most = membership_rules.MOST_OF_ADMINISTRATORS if roles.is_admin(caller) else self._most_founded
        async with self._organisations.transaction() as transaction:
            made = await self._organisations.add(transaction, name, caller.user_id, most)
            await self._trail.add(transaction, audit_records.done("organisation.create", caller, tenant=made.id, target=made.id))
        _log.info("organization created", organisation=made.id, by=caller.user_id)
        return made

    @serves(api.list_organisations)
    async def list_organisations(self, request: api.ListOrganizations, call: RpcCall) -> api.Organizations:
        caller = call.principal
        found = await self._organisations.list_of(caller.user_id)
        if caller.key_id is not None and caller.team_id is not None:
            found = tuple(organisation for organisation in found if organisation.id == caller.team_id)
        return api.Organizations(found)

    @serves(api.get_organisation)
    async def get_organisation(self, request: api.GetOrganization, call: RpcCall) -> OrganizationDetails:
        membership_rules.check_in_reach(call.principal, request.id)
        async with self._organisations.bound(request.id) as transaction:
            return await self._organisations.get_page(transaction, request.id, membership_rules.asker(call.principal))

    @serves(api.rename_organisation)
    async def rename_organisation(self, request: api.RenameOrganization, call: RpcCall) -> Organization:
        caller, name = call.principal, membership_rules.check_name(request.name)
        membership_rules.check_in_reach(caller, request.id)
        async with self._organisations.bound(request.id) as transaction:
            found = await self._organisations.lock(transaction, request.id, membership_rules.asker(caller))
            membership_rules.check_owner(caller, found.role)
            await self._organisations.rename(transaction, request.id, name)
            await self._trail.add(transaction, audit_records.done("organisation.rename", caller, tenant=request.id, target=request.id))
        return msgspec.structs.replace(found, name=name)

    @serves(api.set_team_role)
    async def set_team_role(self, request: api.SetTeamRole, call: RpcCall) -> OrganizationDetails:
        caller, id_ = call.principal, request.organisation
        membership_rules.check_in_reach(caller, id_)
        async with self._organisations.bound(id_) as transaction:
            found = await self._organisations.lock(transaction, id_, membership_rules.asker(caller))
            membership_rules.check_owner(caller, found.role)
            await self._organisations.set_role(transaction, id_, request.user_id, request.role)
            act = audit_records.done("organisation.role", caller, tenant=id_, target=request.user_id, role=request.role)
            await self._trail.add(transaction, act)
            page = await self._organisations.get_page(transaction, id_, membership_rules.asker(caller))
        _log.info("organization role set", organisation=id_, user_id=request.user_id, role=request.role, by=caller.user_id)
        return page

    @serves(api.remove_team_member)
    async def remove_team_member(self, request: api.RemoveTeamMember, call: RpcCall) -> Nothing:
        caller, id_ = call.principal, request.organisation
        membership_rules.check_in_reach(caller, id_)
        async with self._organisations.bound(id_) as transaction:
            found = await self._organisations.lock(transaction, id_, membership_rules.asker(caller))
            membership_rules.check_removal(caller, found.role, request.user_id)
            ended = await self._organisations.remove(transaction, id_, request.user_id)
            act = audit_records.done("organisation.remove", caller, tenant=id_, target=request.user_id, keys=str(len(ended)))
            await self._trail.add(transaction, act)
        for key_id in ended:
            self._node.publish(events.KeyRevoked(datetime.now(UTC), key_id, request.user_id))
        _log.info("organization left", organisation=id_, user_id=request.user_id, keys=len(ended), by=caller.user_id)
        return Nothing()

    # --- administration ----------------------------------------------------------------------------------------------

    @serves(api.list_all_organisations)
    async def list_all_organisations(self, request: api.ListAllOrganizations, call: RpcCall) -> api.Organizations:
        found = await self._organisations.list_all(membership_rules.asker(call.principal), request.limit + 1, request.search, request.after)
        return api.Organizations(found[: request.limit], more=len(found) > request.limit)

    @serves(api.set_team_tier)
    async def set_team_tier(self, request: api.SetTeamTier, call: RpcCall) -> Organization:
        caller, id_ = call.principal, request.organisation
        async with self._organisations.bound(id_) as transaction:
            before = await self._organisations.lock(transaction, id_, membership_rules.asker(caller))
            await self._organisations.set_tier(transaction, id_, request.tier)
            act = audit_records.done("organisation.tier", caller, tenant=id_, target=id_, before=before.tier, after=request.tier)
            await self._trail.add(transaction, act)
        _log.info("organization tier set", organisation=id_, tier=request.tier, by=caller.user_id)
        return msgspec.structs.replace(before, tier=request.tier, shares_limits=False)
