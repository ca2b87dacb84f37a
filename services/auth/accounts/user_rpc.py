"""RPC methods to register, and for administrators to manage accounts."""

import asyncio
import contextlib
from datetime import UTC, datetime

import msgspec

from services.auth import api_keys, audit_records, mail_texts, name_rules, roles, store
from services.auth.accounts.account_store import SessionRevocation
from services.auth.accounts.address_verification import AddressVerification
from services.auth.accounts.colleague_rpc import ColleagueRpc
from services.auth.accounts.request_limits import RegistrationLimits
from services.auth.dependencies import AuthHandlers, Dependencies
from services.auth.mfa.factor_store import FactorStore
from services.auth.nodes.node_store import NodeStore
from services.auth.sessions import identities
from shared import access_table, errors
from shared.api import accounts, auth, business, events, gateway, usage_report
from shared.api.usage_report import UserUsage
from shared.mail.mailer import Mailer
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import KeyId, TenantId, Tier, UserId

_USAGE_SECONDS = 5.0

_log = logs.get(part="auth")


class UserRpc(AuthHandlers):
    def __init__(
        self, parts: Dependencies, limits: RegistrationLimits, colleagues: ColleagueRpc, verification: AddressVerification
    ) -> None:
        super().__init__(parts)
        self._limits = limits
        self._colleagues = colleagues
        self._verification = verification

    @serves(auth.register_user)
    async def register_user(self, request: auth.RegisterUser, call: RpcCall) -> auth.User:
        by = await self._administrator(call, request)
        data = request.user_data
        name_rules.check_username(data.username)
        name_rules.check_email(data.email)
        self._passwords.check(data.password, username=data.username, email=data.email)
        address = identities.client_address(request.client, call)
        if by is None and address is not None:
            # Other callers are nodes, which an administrator let into the mesh.
            await self._limits.charge(address, call.caller.node)
        password_hash = await self._passwords.hash(data.password)
        # Before the transaction, which already has a connection: waiting for a second one could exhaust the pool.
        inviter = await self._find_inviter(request) if by is None else None
        async with self._store.adding_user() as transaction:
            tier = Tier.FREE if by is None else self._settings.invited_tier
            user = await self._store.add_user(transaction, data.username, data.email, password_hash, tier)
            if inviter is not None:
                # As late as possible: failed attempts must not use up the inviter's limit. Limited rolls the user back.
                await self._limits.charge_inviter(*inviter)
            if by is None:
                act = audit_records.done_by("user.register", user.id, target=user.id, address=address or "")
            else:
                act = audit_records.done("user.register", by, tenant=TenantId(user.id), target=user.id)
                await store.verify_address(transaction, user.id, user.email)
            await self._trail.add(transaction, act)
            joined = await self._colleagues.join(transaction, request.invitation, user) if by is None and request.invitation else None
        self._node.metrics.registrations.inc()
        self._node.publish(events.UserRegistered(datetime.now(UTC), user.id))
        _log.info("user registered", user_id=user.id)
        if by is not None or joined is not None:
            return await self._store.get_user(user.id)
        # The account is there already, and its owner can ask for the mail again.
        with contextlib.suppress(errors.Unavailable):
            await self._verification.mail(user)
        return user

    async def _administrator(self, call: RpcCall, request: auth.RegisterUser) -> auth.Principal | None:
        """Return the administrator who adds the user; None if users register themselves. Raises NotAllowed."""
        if call.credential is None:
            if await self._may_register(request):
                return None
            raise errors.NotAllowed(
                "registration is closed here (OPEN_REGISTRATION=false)",
                hint="ask an administrator for an account, or register with the address and the code of an open invitation",
            )
        try:
            caller = await self._identities.of(call.credential)
            access_table.check(access_table.of_method(auth.list_users.name), caller, 0)
        except (errors.NotAuthenticated, errors.NotAllowed):
            if await self._may_register(request):
                return None
            raise
        return caller

    async def _may_register(self, request: auth.RegisterUser) -> bool:
        if self._settings.open_registration:
            return True
        if request.invitation is None:
            return False
        # The inviter vouches for the address: without mail, the code reaches its recipient through them.
        email = request.user_data.email
        return await self._store.is_invited(api_keys.hash_token(request.invitation.strip()), email) or await self._colleagues.is_invited(
            request.invitation, email
        )

    async def _find_inviter(self, request: auth.RegisterUser) -> tuple[UserId, TenantId] | None:
        """Return the inviter and the organization; None if no inviter has to vouch."""
        if self._settings.open_registration or request.invitation is None:
            return None
        return await self._store.find_inviter(api_keys.hash_token(request.invitation.strip()))

    @serves(auth.set_tier)
    async def set_tier(self, request: auth.SetTier, call: RpcCall) -> auth.User:
        user = await self._store.get_user_called(request.user)
        await self._check_plan(request.tier, call)
        async with self._store.transaction() as transaction:
            changed = await self._store.set_tier(transaction, user.id, request.tier)
            act = audit_records.done("user.tier", call.principal, target=user.id, before=user.tier, after=changed.tier)
            await self._trail.add(transaction, act)
        _log.info("tier set", user_id=user.id, tier=request.tier, by=call.principal.user_id)
        return changed

    @serves(auth.set_role)
    async def set_role(self, request: auth.SetRole, call: RpcCall) -> auth.User:
        user = await self._store.get_user_called(request.user)
        if user.id == call.principal.user_id:
            raise errors.NotAllowed("you cannot change your own role", hint="ask another administrator")
        async with self._store.transaction() as transaction:
            changed = await self._store.set_role(transaction, user.id, request.role)
            act = audit_records.done("user.role", call.principal, target=user.id, before=user.role, after=changed.role)
            await self._trail.add(transaction, act)
        _log.info("role set", user_id=user.id, role=request.role, by=call.principal.user_id)
        return changed

    @serves(auth.set_active)
    async def set_active(self, request: auth.SetActive, call: RpcCall) -> auth.User:
        user = await self._store.get_user_called(request.user)
        if user.id == call.principal.user_id and not request.is_active:
            raise errors.NotAllowed("you cannot close your own account", hint="ask another administrator")
        async with self._store.transaction() as transaction:
            changed = await self._store.set_active(transaction, user.id, request.is_active)
            act = audit_records.done("user.open" if request.is_active else "user.close", call.principal, target=user.id)
            await self._trail.add(transaction, act)
        # Otherwise one could open a session if the account is reopened. While Valkey is down, they only expire.
        with contextlib.suppress(errors.Unavailable):
            await self._sessions.end_links(user.id)
        _log.info("account opened" if request.is_active else "account closed", user_id=user.id, by=call.principal.user_id)
        return changed

    @serves(auth.get_user)
    async def get_user(self, request: auth.GetUser, call: RpcCall) -> auth.User:
        return await self._store.get_user(request.user_id)

    @serves(auth.get_user_called)
    async def get_user_called(self, request: auth.GetUserCalled, call: RpcCall) -> auth.User:
        return await self._store.get_user_called(request.user)

    @serves(auth.list_users)
    async def list_users(self, request: auth.ListUsers, call: RpcCall) -> auth.Users:
        found = await self._store.list_users(request.limit + 1, request.search, request.after)
        return auth.Users(found[: request.limit], more=len(found) > request.limit)

    @serves(business.count_new_accounts)
    async def count_new_accounts(self, request: business.CountNewAccounts, call: RpcCall) -> business.NewAccounts:
        if not 0 < (request.until - request.since).days <= business.MAX_DAYS:
            raise errors.BadRequest(f"since and until: two days, the earlier first, at most {business.MAX_DAYS} apart")
        return business.NewAccounts(await self._store.count_new(request.since, request.until))

    @serves(business.name_users)
    async def name_users(self, request: business.NameUsers, call: RpcCall) -> business.UserNames:
        return business.UserNames(await self._store.names_of(request.ids))

    @serves(usage_report.get_user_usage)
    async def get_user_usage(self, request: usage_report.GetUserUsage, call: RpcCall) -> UserUsage:
        user_id = roles.subject_of(call.principal, request.user_id)
        tenant = call.principal.tenant_id if request.user_id is None else TenantId(user_id)
        # The gateway counts usage; auth decides who may see it, and knows the names of the keys.
        deadline_seconds = min(_USAGE_SECONDS, call.remaining_seconds())
        usage = await self._node.rpc.call(gateway.read_usage, gateway.ReadUsage(tenant), deadline_seconds=deadline_seconds)
        names: dict[KeyId | None, str] = {key.id: key.name for key in await self._store.list_keys(tenant, user_id)}
        days = tuple(msgspec.structs.replace(day, api_key_name=names.get(day.api_key_id)) for day in usage.days)
        return msgspec.structs.replace(usage, days=days)


class FactorRemoval(AuthHandlers):
    """Lets an administrator remove a lost second factor. The user gets a mail, so that a removal under false pretenses is noticed."""

    def __init__(self, parts: Dependencies, mailer: Mailer) -> None:
        super().__init__(parts)
        self._factors = FactorStore(parts.store)
        self._ends = SessionRevocation(parts.store, parts.sessions)
        self._mailer = mailer

    @serves(auth.remove_mfa)
    async def remove_mfa(self, request: auth.RemoveMfa, call: RpcCall) -> auth.User:
        user = await self._store.get_user_called(request.user)
        if user.id == call.principal.user_id:
            raise errors.NotAllowed(
                "you cannot remove your own second factor this way", hint="disable it in your settings, or ask another administrator"
            )
        async with self._ends.transaction(user.id) as transaction:
            if not await self._factors.remove(transaction, user.id):
                raise errors.NotFound(f"{user.username} has no second factor", hint="there is nothing to remove")
            await self._trail.add(transaction, audit_records.done("mfa.remove", call.principal, target=user.id))
        _log.info("second factor removed", user_id=user.id, by=call.principal.user_id)
        await self._mailer.send(user.email, *mail_texts.factor_removed(user.username))
        return user


class AccessReviews(AuthHandlers):
    def __init__(self, parts: Dependencies, members: NodeStore) -> None:
        super().__init__(parts)
        self._members = members

    @serves(accounts.review_access)
    async def review_access(self, request: accounts.ReviewAccess, call: RpcCall) -> accounts.AccessReview:
        keys, users, nodes = await asyncio.gather(
            self._store.list_stale_keys(request.days),
            self._store.list_stale_users(request.days),
            self._members.list_idle_nodes(request.days),
        )
        return accounts.AccessReview(keys, users, nodes)
