"""RPC methods to invite users to an organization, and to accept an invitation."""

import secrets
from datetime import UTC, datetime

import msgspec

from services.auth import api_keys, audit_records, mail_texts, name_rules
from services.auth.dependencies import Dependencies
from services.auth.organizations import membership_rules
from services.auth.organizations.organization_store import OrganizationStore
from services.auth.sessions.failed_logins import Guess
from shared import errors
from shared.api import organizations as api
from shared.api.method import Nothing
from shared.api.organizations import Organization
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import UserId

_log = logs.get(part="auth")


class Invitations:
    """The token is only in the mail and in the answer."""

    def __init__(self, parts: Dependencies, organisations: OrganizationStore, mailer: Mailer) -> None:
        self._public_url = parts.settings.public_url
        self._trail = parts.trail
        self._guesses = parts.guesses
        self._organisations = organisations
        self._mailer = mailer

    @serves(api.invite_member)
    async def invite_member(self, request: api.InviteMember, call: RpcCall) -> api.NewInvitation:
        caller, id_, email = call.principal, request.organisation, membership_rules.check_invited(request.email)
        membership_rules.check_in_reach(caller, id_)
        token = secrets.token_urlsafe(32)
        async with self._organisations.bound(id_) as transaction:
            found = await self._organisations.lock(transaction, id_, membership_rules.asker(caller))
            membership_rules.check_owner(caller, found.role)
            if await self._organisations.has_member_with(transaction, id_, email):
                raise errors.AlreadyExists("a user with this address is already a member", hint="`getOrganisation` lists its members")
            invitation = await self._organisations.invite(
                transaction, id_, by=caller.user_id, email=email, role=request.role, token_hash=api_keys.hash_token(token)
            )
            act = audit_records.done("organisation.invite", caller, tenant=id_, target=invitation.id, role=request.role, email=email)
            await self._trail.add(transaction, act)
        page = f"{self._public_url.rstrip('/')}/invitation" if self._public_url else ""
        letter = mail_texts.invitation(found.name, caller.username, page, token, membership_rules.INVITATION_DAYS)
        await self._mailer.send(email, letter.subject, letter.text)
        _log.info("member invited", organisation=id_, invitation=invitation.id, by=caller.user_id)
        return api.NewInvitation(msgspec.structs.replace(invitation, invited_by=caller.username), token)

    @serves(api.withdraw_invitation)
    async def withdraw_invitation(self, request: api.WithdrawInvitation, call: RpcCall) -> Nothing:
        caller, id_ = call.principal, request.organisation
        membership_rules.check_in_reach(caller, id_)
        async with self._organisations.bound(id_) as transaction:
            found = await self._organisations.lock(transaction, id_, membership_rules.asker(caller))
            membership_rules.check_owner(caller, found.role)
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
            joined = await self._organisations.accept(transaction, token_hash, membership_rules.asker(caller))
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
