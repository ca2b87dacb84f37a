"""The RPC methods about accounts: registering, and what administrators do with other people's."""

from datetime import UTC, datetime

from services.auth import audit_records, client_facing_roles, name_rules, roles
from services.auth.accounts.registration_limits import RegistrationLimits
from services.auth.dependencies import Dependencies
from services.auth.organizations import membership_rules
from shared import errors
from shared.access import access_table
from shared.api import auth, business, events, gateway, usage_report
from shared.api.usage_report import UserUsage
from shared.rpc import RpcCall, serves
from shared.telemetry import logs
from shared.types import TenantId, UserId

_MOST_USERS_LISTED = 1000
_USAGE_SECONDS = 5.0

_log = logs.get(part="auth")


class UserRpc:
    """Handlers; all state is in PostgreSQL."""

    def __init__(self, parts: Dependencies, newcomers: RegistrationLimits) -> None:
        self._settings = parts.settings
        self._node = parts.node
        self._store = parts.store
        self._passwords = parts.passwords
        self._identities = parts.identities
        self._trail = parts.trail
        self._newcomers = newcomers

    @serves(auth.register_user)
    async def register_user(self, request: auth.RegisterUser, call: RpcCall) -> auth.User:
        by = await self._administrator(call, request)
        asked = request.user_data
        name_rules.check_username(asked.username)
        name_rules.check_email(asked.email)
        self._passwords.check(asked.password, username=asked.username, email=asked.email)
        address = client_facing_roles.address_seen(request.client, call)
        if by is None and address is not None:
            # Who came by no door was let into the mesh by somebody.
            await self._newcomers.charge(address, call.caller.node)
        password_hash = await self._passwords.hash(asked.password)
        # Before the transaction, which has a connection already: waiting for a second one could exhaust the pool.
        inviter = await self._find_inviter(request) if by is None else None
        async with self._store.adding_user() as transaction:
            user = await self._store.add_user(transaction, asked.username, asked.email, password_hash)
            if inviter is not None:
                # Not before: tries that fail must not use up what the inviter may do. Limited takes the user back.
                await self._newcomers.charge_inviter(*inviter)
            if by is None:
                act = audit_records.done_by("user.register", user.id, target=user.id, address=address or "")
            else:
                act = audit_records.done("user.register", by, tenant=TenantId(user.id), target=user.id)
            await self._trail.add(transaction, act)
        self._node.metrics.registrations.inc()
        self._node.publish(events.UserRegistered(datetime.now(UTC), user.id))
        _log.info("user registered", user_id=user.id)
        return user

    async def _administrator(self, call: RpcCall, request: auth.RegisterUser) -> auth.Principal | None:
        """Who adds somebody else; None for people who register themselves. Raises NotAllowed where they may not."""
        if call.credential is None:
            if await self._may_register(request):
                return None
            raise errors.NotAllowed(
                "registration is closed here (OPEN_REGISTRATION=false)",
                hint="ask an administrator for an account, or register with the address and the code of an open invitation",
            )
        try:
            caller = await self._identities.of(call.credential)
            access_table.check(access_table.of_method(auth.list_users.name), caller, 0, auth.register_user.name)
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
        # The inviter answers for the address: where no mail is sent, the code reaches its addressee through them.
        return await self._store.is_invited(membership_rules.digest(request.invitation.strip()), request.user_data.email)

    async def _find_inviter(self, request: auth.RegisterUser) -> tuple[UserId, TenantId] | None:
        """And the organization; None where nobody has to answer for a newcomer."""
        if self._settings.open_registration or request.invitation is None:
            return None
        return await self._store.find_inviter(membership_rules.digest(request.invitation.strip()))

    @serves(auth.set_tier)
    async def set_tier(self, request: auth.SetTier, call: RpcCall) -> auth.User:
        user = await self._store.get_user_called(request.user)
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
            raise errors.NotAllowed("nobody changes their own role: it could be the last administrator's", hint="let another administrator")
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
            raise errors.NotAllowed(
                "nobody closes their own account: it could be the last administrator's", hint="let another administrator"
            )
        async with self._store.transaction() as transaction:
            changed = await self._store.set_active(transaction, user.id, request.is_active)
            act = audit_records.done("user.open" if request.is_active else "user.close", call.principal, target=user.id)
            await self._trail.add(transaction, act)
        _log.info("account opened" if request.is_active else "account closed", user_id=user.id, by=call.principal.user_id)
        return changed

    @serves(auth.get_user)
    async def get_user(self, request: auth.GetUser, call: RpcCall) -> auth.User:
        user = await self._store.find_user(request.user_id)
        if user is None:
            raise errors.NotFound("there is no user with this id", hint="`aicli admin users list` shows them")
        return user

    @serves(auth.get_user_called)
    async def get_user_called(self, request: auth.GetUserCalled, call: RpcCall) -> auth.User:
        return await self._store.get_user_called(request.user)

    @serves(auth.list_users)
    async def list_users(self, request: auth.ListUsers, call: RpcCall) -> auth.Users:
        if not 1 <= request.limit <= _MOST_USERS_LISTED:
            raise errors.BadRequest(f"limit: 1 to {_MOST_USERS_LISTED}")
        found = await self._store.list_users(request.limit + 1, request.search, request.after)
        return auth.Users(found[: request.limit], more=len(found) > request.limit)

    @serves(business.count_new_accounts)
    async def count_new_accounts(self, request: business.CountNewAccounts, call: RpcCall) -> business.NewAccounts:
        if not 0 < (request.until - request.since).days <= business.MOST_DAYS:
            raise errors.BadRequest(f"since and until: two days, the earlier one first, at most {business.MOST_DAYS} apart")
        return business.NewAccounts(await self._store.count_new(request.since, request.until))

    @serves(business.name_users)
    async def name_users(self, request: business.NameUsers, call: RpcCall) -> business.UserNames:
        return business.UserNames(await self._store.names_of(request.ids))

    @serves(usage_report.get_user_usage)
    async def get_user_usage(self, request: usage_report.GetUserUsage, call: RpcCall) -> UserUsage:
        tenant = call.principal.tenant_id if request.user_id is None else TenantId(roles.subject_of(call.principal, request.user_id))
        # The gateway counts, so it is asked; auth only says who may know.
        deadline_seconds = min(_USAGE_SECONDS, call.remaining_seconds())
        return await self._node.rpc.call(gateway.read_usage, gateway.ReadUsage(tenant), deadline_seconds=deadline_seconds)
