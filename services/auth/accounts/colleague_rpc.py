"""RPC methods to invite people to the mesh itself, and to accept. A new user accepts by registering."""

import secrets
from datetime import UTC, datetime

import msgspec

from services.auth import api_keys, audit_records, mail_texts, store
from services.auth.accounts import request_limits
from services.auth.accounts.colleague_store import AcceptedInvitation, ColleagueStore
from services.auth.accounts.request_limits import HourlyLimits
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.organizations import membership_rules
from services.auth.sessions import identities
from shared import errors
from shared.api import auth
from shared.api import organizations as api
from shared.api.method import Nothing
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.stores.cache import Cache
from shared.stores.transactions import Transaction
from shared.telemetry import logs

_log = logs.get(part="auth")


class ColleagueRpc(AuthHandlers):
    """An invitation is open while its inviter is an administrator."""

    def __init__(self, parts: Dependencies, colleagues: ColleagueStore, mailer: Mailer, cache: Cache) -> None:
        super().__init__(parts)
        self._colleagues = colleagues
        self._mailer = mailer
        self._reads = HourlyLimits(cache, "invitations_read")

    @serves(api.invite_colleague)
    async def invite_colleague(self, request: api.InviteColleague, call: RpcCall) -> api.InvitedColleague:
        caller, email, token = call.principal, membership_rules.check_invited(request.email), secrets.token_urlsafe(32)
        if await self._colleagues.has_account(email):
            raise errors.AlreadyExists(
                "a user with this address has an account", hint="change their role, or invite them to an organization"
            )
        team = await self._colleagues.get_organisation(request.organisation.strip()) if request.organisation.strip() else None
        token_hash = api_keys.hash_token(token)
        async with self._colleagues.transaction() as transaction:
            invitation = await self._colleagues.invite(
                transaction, by=caller.user_id, email=email, role=request.role, organisation=team, token_hash=token_hash
            )
            act = audit_records.done(
                "user.invite", caller, target=invitation.id, role=request.role, email=email, organisation=str(team or "")
            )
            await self._trail.add(transaction, act)
        page = self._settings.page("/join")
        letter = mail_texts.colleague_invitation(caller.username, invitation.offer, page, token, membership_rules.INVITATION_DAYS)
        await self._mailer.send(email, letter.subject, letter.text)
        _log.info("colleague invited", invitation=invitation.id, role=request.role, by=caller.user_id)
        return api.InvitedColleague(invitation, token, f"{page}#{token}" if page else "", self._settings.smtp_url is not None)

    @serves(api.list_colleague_invitations)
    async def list_invitations(self, request: api.ListColleagueInvitations, call: RpcCall) -> api.ColleagueInvitations:
        return api.ColleagueInvitations(await self._colleagues.list_open())

    @serves(api.withdraw_colleague_invitation)
    async def withdraw(self, request: api.WithdrawColleagueInvitation, call: RpcCall) -> Nothing:
        matching = [each.id for each in await self._colleagues.list_open() if each.id.startswith(request.id.lower())]
        async with self._colleagues.transaction() as transaction:
            if len(matching) != 1 or not await self._colleagues.withdraw(transaction, matching[0]):
                raise errors.NotFound("there is no open invitation with this id", hint="`aicli admin invitations list` shows them")
            await self._trail.add(transaction, audit_records.done("user.uninvite", call.principal, target=matching[0]))
        return Nothing()

    @serves(api.read_colleague_invitation)
    async def read_invitation(self, request: api.ReadColleagueInvitation, call: RpcCall) -> api.ColleagueInvitation:
        address = identities.client_address(request.client, call) or ""
        subject = request_limits.requester_of(address, call.caller.node)
        await self._reads.charge(
            subject, request_limits.MAX_INVITATIONS_READ, "too many invitations were looked up", hint="try again later"
        )
        token_hash = api_keys.hash_token(request.token.strip())
        found = await self._colleagues.list_open(token_hash)
        if not found:
            async with self._colleagues.transaction() as transaction:
                raise membership_rules.why_not_accepted(await self._colleagues.find(transaction, token_hash), datetime.now(UTC))
        return found[0]

    @serves(api.accept_colleague_invitation)
    async def accept_invitation(self, request: api.AcceptColleagueInvitation, call: RpcCall) -> auth.User:
        membership_rules.check_may_join(call.principal)
        # Before the transaction, which already has a connection: waiting for a second one could exhaust the pool.
        user = await self._store.get_user(call.principal.user_id)
        async with self._colleagues.transaction() as transaction:
            joined = await self.join(transaction, request.token, user)
        if joined is None:
            raise membership_rules.why_not_accepted(None, datetime.now(UTC))
        _log.info("invitation to the mesh accepted", user_id=user.id, role=joined.role)
        return joined

    async def is_invited(self, token: str, email: str) -> bool:
        """Return whether an open invitation to this address has this code."""
        return any(each.email.lower() == email.lower() for each in await self._colleagues.list_open(api_keys.hash_token(token.strip())))

    async def join(self, transaction: Transaction, token: str, user: auth.User) -> auth.User | None:
        """Accept for this user, who may be new in this transaction. Return None if no invitation to the mesh has this code; raises
        NotFound or NotAllowed if it is not open, or not theirs."""
        token_hash = api_keys.hash_token(token.strip())
        accepted = await self._colleagues.accept(transaction, token_hash, user.id)
        if accepted is None:
            known = await self._colleagues.find(transaction, token_hash)
            if known is None:
                return None
            raise membership_rules.why_not_accepted(known, datetime.now(UTC))
        # Not so of invitations to an organization: anyone can send these, and is shown the code as well.
        await store.verify_address(transaction, user.id, user.email)
        await self._record(transaction, accepted, user)
        tier = user.tier
        if await transaction.run("set_first_tier", user.id, self._settings.invited_tier):
            tier = self._settings.invited_tier
            await self._trail.add(transaction, audit_records.done_by("user.tier", user.id, target=user.id, before=user.tier, after=tier))
        return msgspec.structs.replace(user, role=accepted.role, tier=tier)

    async def _record(self, transaction: Transaction, accepted: AcceptedInvitation, user: auth.User) -> None:
        before, after = accepted.role_before, accepted.role
        act = audit_records.done_by("user.join", user.id, target=accepted.id, before=before, after=after)
        await self._trail.add(transaction, act)
        if accepted.organisation is not None:
            act = audit_records.done_by("organisation.join", user.id, target=user.id)
            await self._trail.add(transaction, msgspec.structs.replace(act, tenant_id=accepted.organisation))
