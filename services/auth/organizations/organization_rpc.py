"""RPC methods about organizations, their members and invitations."""

import secrets
from datetime import UTC, datetime

import msgspec

from services.auth import api_keys, audit_records, mail_texts, name_rules, roles
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.organizations import membership_rules
from services.auth.organizations.organization_store import OrganizationStore
from services.auth.sessions.failed_logins import Guess
from shared import errors
from shared.api import events
from shared.api import organizations as api
from shared.api.method import Nothing
from shared.api.organizations import Organization, OrganizationDetails
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import UserId

_log = logs.get(part="auth")


class OrganizationRpc(AuthHandlers):
    def __init__(self, parts: Dependencies, organisations: OrganizationStore) -> None:
        super().__init__(parts)
        self._organisations = organisations

    @serves(api.create_organisation)
    async def create_organisation(self, request: api.CreateOrganization, call: RpcCall) -> Organization:
        caller, name = call.principal, membership_rules.check_name(request.name)
        most = membership_rules.MAX_OF_ADMINISTRATORS if roles.is_admin(caller) else self._settings.organisations_per_user
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
            return await self._organisations.get_page(transaction, request.id, call.principal)

    @serves(api.rename_organisation)
    async def rename_organisation(self, request: api.RenameOrganization, call: RpcCall) -> Organization:
        caller, name = call.principal, membership_rules.check_name(request.name)
        async with self._organisations.owned(request.id, caller) as (transaction, found):
            await self._organisations.rename(transaction, request.id, name)
            await self._trail.add(transaction, audit_records.done("organisation.rename", caller, tenant=request.id, target=request.id))
        return msgspec.structs.replace(found, name=name)

    @serves(api.set_team_role)
    async def set_team_role(self, request: api.SetTeamRole, call: RpcCall) -> OrganizationDetails:
        caller, id_ = call.principal, request.organisation
        async with self._organisations.owned(id_, caller) as (transaction, _):
            await self._organisations.set_role(transaction, id_, request.user_id, request.role)
            act = audit_records.done("organisation.role", caller, tenant=id_, target=request.user_id, role=request.role)
            await self._trail.add(transaction, act)
            page = await self._organisations.get_page(transaction, id_, caller)
        _log.info("organization role set", organisation=id_, user_id=request.user_id, role=request.role, by=caller.user_id)
        return page

    @serves(api.remove_team_member)
    async def remove_team_member(self, request: api.RemoveTeamMember, call: RpcCall) -> Nothing:
        caller, id_ = call.principal, request.organisation
        async with self._organisations.changing(id_, caller) as (transaction, found):
            membership_rules.check_removal(caller, found.role, request.user_id)
            ended = await self._organisations.remove(transaction, id_, request.user_id)
            act = audit_records.done("organisation.remove", caller, tenant=id_, target=request.user_id, keys=str(len(ended)))
            await self._trail.add(transaction, act)
        for key_id in ended:
            self._node.publish(events.KeyRevoked(datetime.now(UTC), key_id, request.user_id))
        _log.info("organization left", organisation=id_, user_id=request.user_id, keys=len(ended), by=caller.user_id)
        return Nothing()

    @serves(api.list_all_organisations)
    async def list_all_organisations(self, request: api.ListAllOrganizations, call: RpcCall) -> api.Organizations:
        found = await self._organisations.list_all(call.principal, request.limit + 1, request.search, request.after)
        return api.Organizations(found[: request.limit], more=len(found) > request.limit)

    @serves(api.set_team_tier)
    async def set_team_tier(self, request: api.SetTeamTier, call: RpcCall) -> Organization:
        caller, id_ = call.principal, request.organisation
        await self._check_plan(request.tier, call)
        async with self._organisations.bound(id_) as transaction:
            before = await self._organisations.lock(transaction, id_, caller)
            await self._organisations.set_tier(transaction, id_, request.tier)
            act = audit_records.done("organisation.tier", caller, tenant=id_, target=id_, before=before.tier, after=request.tier)
            await self._trail.add(transaction, act)
        _log.info("organization tier set", organisation=id_, tier=request.tier, by=caller.user_id)
        return msgspec.structs.replace(before, tier=request.tier, shares_limits=False)


class Invitations(AuthHandlers):
    """An invitation's token is only in the mail and in the answer."""

    def __init__(self, parts: Dependencies, organisations: OrganizationStore, mailer: Mailer) -> None:
        super().__init__(parts)
        self._organisations = organisations
        self._mailer = mailer

    @serves(api.invite_member)
    async def invite_member(self, request: api.InviteMember, call: RpcCall) -> api.NewInvitation:
        caller, id_, email = call.principal, request.organisation, membership_rules.check_invited(request.email)
        token = secrets.token_urlsafe(32)
        async with self._organisations.owned(id_, caller) as (transaction, found):
            if await self._organisations.has_member_with(transaction, id_, email):
                raise errors.AlreadyExists("a user with this address is already a member", hint="see its members", field="email")
            invitation = await self._organisations.invite(
                transaction, id_, by=caller.user_id, email=email, role=request.role, token_hash=api_keys.hash_token(token)
            )
            act = audit_records.done("organisation.invite", caller, tenant=id_, target=invitation.id, role=request.role, email=email)
            await self._trail.add(transaction, act)
        letter = mail_texts.invitation(
            found.name, caller.username, self._settings.page("/invitation"), token, membership_rules.INVITATION_DAYS
        )
        await self._mailer.send(email, letter.subject, letter.text)
        _log.info("member invited", organisation=id_, invitation=invitation.id, by=caller.user_id)
        return api.NewInvitation(msgspec.structs.replace(invitation, invited_by=caller.username), token)

    @serves(api.withdraw_invitation)
    async def withdraw_invitation(self, request: api.WithdrawInvitation, call: RpcCall) -> Nothing:
        caller, id_ = call.principal, request.organisation
        async with self._organisations.owned(id_, caller) as (transaction, _):
            invitation = name_rules.find_uuid(request.id)
            if invitation is None or not await self._organisations.withdraw(transaction, id_, invitation):
                raise errors.NotFound("there is no open invitation with this id", hint="`getOrganisation` lists them")
            await self._trail.add(transaction, audit_records.done("organisation.withdraw", caller, tenant=id_, target=invitation))
        return Nothing()

    @serves(api.read_invitation)
    async def read_invitation(self, request: api.ReadInvitation, call: RpcCall) -> api.InvitationOffer:
        caller, token_hash = call.principal, api_keys.hash_token(request.token.strip())
        membership_rules.check_may_join(caller)
        guess = await self._charge(caller.user_id)
        offer = await self._organisations.find_offer(token_hash, caller.user_id)
        if offer is None:
            raise membership_rules.no_offer()
        # Only this attempt: a valid code must not reset failed attempts at others.
        await self._guesses.refund(guess)
        return offer

    @serves(api.accept_invitation)
    async def accept_invitation(self, request: api.AcceptInvitation, call: RpcCall) -> Organization:
        caller, token_hash = call.principal, api_keys.hash_token(request.token.strip())
        membership_rules.check_may_join(caller)
        async with self._organisations.transaction() as transaction:
            joined = await self._organisations.accept(transaction, token_hash, caller)
            if joined is not None:
                await self._trail.add(transaction, audit_records.done("organisation.join", caller, tenant=joined.id, target=caller.user_id))
        if joined is None:
            raise membership_rules.why_not_accepted(await self._organisations.find_invitation(token_hash), datetime.now(UTC))
        _log.info("organization joined", organisation=joined.id, user_id=caller.user_id)
        return joined

    async def _charge(self, user_id: UserId) -> Guess:
        """Charge before the code is looked up, so concurrent attempts gain nothing. Raises Limited."""
        try:
            return await self._guesses.charge(membership_rules.guesses_of(user_id))
        except (errors.Limited, errors.NotAllowed) as error:
            raise membership_rules.too_many_guesses(error.retry_after_seconds) from error
