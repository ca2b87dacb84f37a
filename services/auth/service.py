"""The auth service: its RPC methods, and what they are made of put together."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import ClassVar

from services.auth import api_keys, failed_logins, names, roles, tokens
from services.auth.changes import Changes
from services.auth.doorkeeper import Doorkeeper
from services.auth.failed_logins import FailedLogins
from services.auth.identities import Identities
from services.auth.last_used import LastUsed
from services.auth.mesh_ca import MeshCa
from services.auth.passwords import Passwords
from services.auth.roster import Roster
from services.auth.sessions import LINK_SECONDS, Session, Sessions
from services.auth.settings import AuthSettings
from services.auth.store import Account, Store
from shared import errors
from shared.api import auth, events, gateway
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.api.usage import UserUsage
from shared.cache import Cache
from shared.node import Node
from shared.rpc import Call, StreamCall, serves
from shared.telemetry import logs
from shared.types import KeyId, Role, UserRole

_MOST_USERS_LISTED = 1000

_log = logs.get(part="auth")


class AuthService:
    """Users, keys and sessions, over RPC. It keeps nothing that another replica would have to know."""

    role: ClassVar[Role] = Role.AUTH

    def __init__(self, settings: AuthSettings, node: Node, store: Store, cache: Cache, passwords: Passwords) -> None:
        self._settings = settings
        self._node = node
        self._store = store
        self._cache = cache
        self._passwords = passwords
        self._failed_logins = FailedLogins(cache)
        self._sessions = Sessions(cache, idle_seconds=settings.session_timeout_seconds, longest_seconds=settings.session_longest_seconds)
        self._tokens = tokens.AccessTokens(tokens.load_key(settings.jwt_signing_key), issuer=f"aimesh/{settings.mesh}")
        self._last_used = LastUsed(store)
        self._changes = Changes(store, node.drain_started)
        self._identities = Identities(
            store, self._sessions, self._tokens, self._last_used, pepper=settings.api_key_pepper, count_refusal=self._count_refusal
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: AuthSettings, node: Node) -> AsyncIterator["AuthService"]:
        async with contextlib.AsyncExitStack() as stack:
            passwords = stack.enter_context(Passwords.open(min_length=settings.password_min_length))
            store = await stack.enter_async_context(Store.open(settings.database_url))
            cache = await stack.enter_async_context(Cache.open(settings.redis_url))
            service = cls(settings, node, store, cache, passwords)
            await service._ensure_first_admin()
            ca = MeshCa.load(settings, node, store.members)
            if ca is not None:
                await ca.begin()
            # A group of its own, so that these end before what they use is closed.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(service._changes.run()), tasks.create_task(service._last_used.run())]
            if ca is not None:
                running.append(tasks.create_task(ca.run()))
            node.dispatcher.add(Doorkeeper(node, store.members, ca))
            node.dispatcher.add(Roster(node, store, service._identities, ca))
            yield service
            for task in running:
                task.cancel()
            await service._last_used.write()

    async def checks(self) -> tuple[Check, ...]:
        return tuple(await asyncio.gather(self._store.check(), self._cache.check()))

    def asgi(self) -> None:
        """Only RPC; HTTP has its door at the gateway."""

    # --- accounts ----------------------------------------------------------------------------------------------------

    @serves(auth.register_user)
    async def register_user(self, request: auth.RegisterUser, call: Call) -> auth.User:
        if not self._settings.open_registration:
            await self._require_admin_to_register(call)
        asked = request.user_data
        names.check_username(asked.username)
        names.check_email(asked.email)
        self._passwords.check(asked.password, username=asked.username, email=asked.email)
        user = await self._store.add_user(asked.username, asked.email, await self._passwords.hash(asked.password))
        self._node.metrics.registrations.inc()
        self._node.publish(events.UserRegistered(_now(), user.id))
        _log.info("user registered", user_id=user.id)
        return user

    async def _require_admin_to_register(self, call: Call) -> None:
        if call.credential is None:
            # Whoever asks for an account has none to send; what helps is a person.
            raise errors.NotAllowed("registration is closed here", hint="ask an administrator for an account")
        await self._admin(call)

    @serves(auth.set_tier)
    async def set_tier(self, request: auth.SetTier, call: Call) -> auth.User:
        admin = await self._admin(call)
        user = await self._store.get_user_called(request.user)
        changed = await self._store.set_tier(user.id, request.tier)
        _log.info("tier set", user_id=user.id, tier=request.tier, by=admin.user_id)
        return changed

    @serves(auth.set_active)
    async def set_active(self, request: auth.SetActive, call: Call) -> auth.User:
        admin = await self._admin(call)
        user = await self._store.get_user_called(request.user)
        if user.id == admin.user_id and not request.is_active:
            raise errors.NotAllowed(
                "nobody closes their own account: it could be the last administrator's", hint="let another administrator"
            )
        changed = await self._store.set_active(user.id, request.is_active)
        _log.info("account opened" if request.is_active else "account closed", user_id=user.id, by=admin.user_id)
        return changed

    @serves(auth.get_user)
    async def get_user(self, request: auth.GetUser, call: Call) -> auth.User:
        user = await self._store.find_user(roles.subject_of(await self._caller(call), request.user_id))
        if user is None:
            raise errors.NotFound("there is no user with this id", hint="`aicli admin users list` shows them")
        return user

    @serves(auth.get_user_called)
    async def get_user_called(self, request: auth.GetUserCalled, call: Call) -> auth.User:
        await self._admin(call)
        return await self._store.get_user_called(request.user)

    @serves(auth.list_users)
    async def list_users(self, request: auth.ListUsers, call: Call) -> auth.Users:
        await self._admin(call)
        if not 1 <= request.limit <= _MOST_USERS_LISTED:
            raise errors.BadRequest(f"limit: 1 to {_MOST_USERS_LISTED}")
        return auth.Users(await self._store.list_users(request.limit))

    @serves(auth.get_user_usage)
    async def get_user_usage(self, request: auth.GetUserUsage, call: Call) -> UserUsage:
        user_id = roles.subject_of(await self._caller(call), request.user_id)
        # The gateway counts, so it is asked; auth only says who may know.
        deadline_seconds = min(5.0, call.remaining_seconds())
        return await self._node.rpc.call(gateway.read_usage, gateway.ReadUsage(user_id), deadline_seconds=deadline_seconds)

    # --- sessions ----------------------------------------------------------------------------------------------------

    @serves(auth.login_user)
    async def login_user(self, request: auth.LoginUser, call: Call) -> auth.Session:
        typed = request.credentials
        if (typed.username is None) == (typed.email is None):
            raise errors.BadRequest("credentials: give username or email, one of them, and password")
        name = typed.username or typed.email or ""
        account = await self._store.find_account(name)
        counted_as = failed_logins.account_of(account.user.id if account else None, name)
        try:
            await self._failed_logins.charge(counted_as)
        except errors.Limited:
            self._count_refusal("too_many_logins")
            raise
        if not await self._passwords.verify(typed.password, account.password_hash if account else None) or account is None:
            raise self._identities.wrong_password()
        await self._failed_logins.forgive(counted_as)
        if not account.user.is_active:
            raise self._identities.closed()
        await self._ensure_current_hash(account, typed.password)
        return await self._open_session(account.user)

    @serves(auth.refresh_session)
    async def refresh_session(self, request: auth.RefreshSession, call: Call) -> auth.Session:
        session = await self._sessions.prolong(request.session_token)
        if session is None:
            raise self._identities.session_over()
        user = await self._identities.active_user(await self._store.find_user(session.user_id))
        return self._answer(user, request.session_token, session)

    @serves(auth.logout_user)
    async def logout_user(self, request: auth.LogoutUser, call: Call) -> Nothing:
        await self._sessions.close(request.session_token)
        return Nothing()

    @serves(auth.create_login_link)
    async def create_login_link(self, request: auth.CreateLoginLink, call: Call) -> auth.LoginLink:
        caller = await self._caller(call)
        roles.check_may_open_session(caller)
        return auth.LoginLink(await self._sessions.offer_link(caller.user_id), LINK_SECONDS)

    @serves(auth.redeem_login_link)
    async def redeem_login_link(self, request: auth.RedeemLoginLink, call: Call) -> auth.Session:
        user_id = await self._sessions.take_link(request.token)
        if user_id is None:
            raise self._identities.link_over()
        return await self._open_session(await self._identities.active_user(await self._store.find_user(user_id)))

    # --- keys --------------------------------------------------------------------------------------------------------

    @serves(auth.generate_api_key)
    async def generate_api_key(self, request: auth.GenerateApiKey, call: Call) -> auth.NewApiKey:
        caller = await self._caller(call)
        user_id = roles.subject_of(caller, request.user_id)
        names.check_key_name(request.name)
        roles.check_limits_of_new_key(caller, request.limits)
        if user_id != caller.user_id and await self._store.find_user(user_id) is None:
            raise errors.NotFound("there is no user with this id", hint="`aicli admin users list` shows them")
        key = api_keys.generate()
        stored = await self._store.add_key(
            user_id,
            name=request.name.strip(),
            key_hash=self._identities.digest(key),
            preview=api_keys.preview(key),
            limits=request.limits,
        )
        self._node.metrics.keys_created.inc()
        self._node.publish(events.KeyCreated(_now(), stored.id, user_id))
        _log.info("key created", key_id=stored.id, user_id=user_id)
        return auth.NewApiKey(key, stored)

    @serves(auth.list_api_keys)
    async def list_api_keys(self, request: auth.ListApiKeys, call: Call) -> auth.ApiKeys:
        user_id = roles.subject_of(await self._caller(call), request.user_id)
        return auth.ApiKeys(await self._store.list_keys(user_id))

    @serves(auth.revoke_api_key)
    async def revoke_api_key(self, request: auth.RevokeApiKey, call: Call) -> auth.ApiKey:
        caller = await self._caller(call)
        key = await self._get_key(caller, request.key)
        revoked = await self._store.revoke_key(key.id)
        if revoked is None:
            return key
        self._node.publish(events.KeyRevoked(_now(), key.id, key.user_id))
        _log.info("key revoked", key_id=key.id, user_id=key.user_id, by=caller.user_id)
        return revoked

    # --- for the other services ----------------------------------------------------------------------------------------

    @serves(auth.validate_api_key)
    async def validate_api_key(self, request: auth.ValidateApiKey, call: Call) -> auth.Principal:
        principal = await self._identities.of_key(request.api_key)
        _log.info("key recognised", key_id=principal.key_id, user_id=principal.user_id)
        return principal

    @serves(auth.identify)
    async def identify(self, request: auth.Identify, call: Call) -> auth.Principal:
        return await self._identities.of(request.credential)

    @serves(auth.watch_changes)
    async def watch_changes(self, request: auth.WatchChanges, stream: StreamCall[auth.Change]) -> Nothing:
        async with contextlib.aclosing(self._changes.watch(request.since)) as changes:
            async for change in changes:
                await stream.send(change)
        return Nothing()

    # --- parts -------------------------------------------------------------------------------------------------------

    async def _caller(self, call: Call) -> auth.Principal:
        return await self._identities.of(call.credential)

    async def _admin(self, call: Call) -> auth.Principal:
        caller = await self._caller(call)
        roles.check_admin(caller)
        return caller

    async def _get_key(self, caller: auth.Principal, text: str) -> auth.ApiKey:
        """By id, or by a name that one active key of the caller has. Raises NotFound, and BadRequest for several."""
        if (key_id := names.find_uuid(text)) is not None:
            key = await self._store.find_key(KeyId(key_id))
            # Another's key is as unknown as one that never was.
            if key is not None and (key.user_id == caller.user_id or caller.role is UserRole.ADMIN):
                return key
            raise errors.NotFound("you have no key with this id", hint="`aicli keys list` shows them")
        named = await self._store.list_keys_named(caller.user_id, text) if names.may_be_key_name(text) else ()
        if not named:
            raise errors.NotFound("you have no active key of this name", hint="`aicli keys list` shows them")
        if len(named) > 1:
            raise errors.BadRequest(
                "several active keys have this name", hint="give the id of one: " + ", ".join(str(key.id) for key in named[:5])
            )
        return named[0]

    async def _open_session(self, user: auth.User) -> auth.Session:
        token, session = await self._sessions.open(user.id)
        return self._answer(user, token, session)

    def _answer(self, user: auth.User, session_token: str, session: Session) -> auth.Session:
        access_token = self._tokens.issue(user.id, session.id, time.time())
        return auth.Session(access_token, tokens.LIFETIME_SECONDS, session_token, user)

    async def _ensure_current_hash(self, account: Account, password: str) -> None:
        if self._passwords.is_outdated(account.password_hash):
            # The login has succeeded; if this cannot be done now, the next login will.
            with contextlib.suppress(errors.Overloaded, errors.Unavailable):
                await self._store.replace_password_hash(account, await self._passwords.hash(password))

    async def _ensure_first_admin(self) -> None:
        password = self._settings.admin_password
        if password is None or await self._store.has_admin():
            return
        try:
            self._passwords.check(password, username=names.ADMIN_USERNAME, email=names.ADMIN_EMAIL)
        except errors.BadRequest as error:
            raise errors.BadSettings(f"ADMIN_PASSWORD: {error.message}", hint=error.hint) from error
        if await self._store.ensure_first_admin(await self._passwords.hash(password)):
            _log.info("first administrator made", username=names.ADMIN_USERNAME)

    def _count_refusal(self, reason: str) -> None:
        self._node.metrics.auth_failures.labels(reason=reason).inc()


def _now() -> datetime:
    return datetime.now(UTC)
