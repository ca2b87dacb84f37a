"""The auth service: starts what ``wiring`` connects, and answers the other services."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import ClassVar

from services.auth import audit_records, wiring
from services.auth.nodes.gateway_releases import ReleaseGate
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.nats_logins import NatsLogins
from services.auth.oidc.oidc_rpc import OidcDependencies
from services.auth.oidc.oidc_store import OidcStore
from services.auth.sessions.identities import CLIENT_FACING, logged_in_from
from services.auth.settings import AuthSettings
from services.auth.wiring import OpenedStores, Wiring
from shared import errors
from shared.api import accounts, auth, recovery, service_settings
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.node import Node
from shared.node.settings import list_settings
from shared.rpc import RpcCall, StreamCall, serves
from shared.rpc.authorization import Authorizer, CallerIdentity
from shared.telemetry import logs
from shared.telemetry.instruments import AuthFailure
from shared.types import Role

_log = logs.get(part="auth")


class AuthService:
    """Keeps no state that another replica would need."""

    role: ClassVar[Role] = Role.AUTH

    def __init__(self, settings: AuthSettings, node: Node, opened: OpenedStores) -> None:
        self._settings = settings
        self._node = node
        self._opened = opened
        self._auth_failures = node.metrics.auth_failures
        self._wiring = Wiring(settings, node, opened, self._count_refusal)
        self._identities = self._wiring.identities
        self._logins: NatsLogins | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: AuthSettings, node: Node) -> AsyncIterator["AuthService"]:
        async with contextlib.AsyncExitStack() as stack:
            opened = await stack.enter_async_context(wiring.opened(settings, node))
            service = cls(settings, node, opened)
            wired = service._wiring
            await wired.finish_recovery()
            await wired.releases.begin()
            ca = MeshCa.load(settings, node, wired.members)
            if ca is not None:
                await ca.begin()
            oidc = await stack.enter_async_context(
                OidcDependencies.open(settings, opened.cache, OidcStore(opened.database, wired.trail, settings.oidc_tier))
            )
            logins = service._logins = wired.nats_logins()
            handlers, work = wired.connect(ca, oidc, logins)
            # In its own group, so these tasks end before what they use is closed.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(each()) for each in work]
            node.dispatcher.gate = ReleaseGate(wired.releases, Authorizer(service._identities.of, service._on_refusal))
            node.dispatcher.finish = opened.recovery.log.finish
            for handler in handlers:
                node.dispatcher.add(handler)
            if logins is not None:
                await logins.connect()
            yield service
            for task in running:
                task.cancel()
            await wired.last_used.write()
            await wired.upkeep.finish()
            with contextlib.suppress(errors.Unavailable):
                await opened.recovery.log.copy()
                await opened.recovery.start.write_state()

    async def checks(self) -> tuple[Check, ...]:
        return (*await self._opened.checks(), *(() if self._logins is None else (self._logins.check(),)))

    def asgi(self) -> None:
        """Clients reach auth's HTTP API at the gateway."""

    @serves(auth.validate_api_key)
    async def validate_api_key(self, request: auth.ValidateApiKey, call: RpcCall) -> auth.Principal:
        principal = await self._identities.of_key(request.api_key)
        _log.info("key recognized", key_id=principal.key_id, user_id=principal.user_id)
        return principal

    @serves(auth.identify)
    async def identify(self, request: auth.Identify, call: RpcCall) -> auth.Principal:
        return await self._identities.of(request.credential)

    @serves(auth.identify_owner)
    async def identify_owner(self, request: auth.IdentifyOwner, call: RpcCall) -> auth.Principal:
        return await self._identities.of_owner(request)

    @serves(auth.identify_person)
    async def identify_person(self, request: auth.IdentifyPerson, call: RpcCall) -> auth.Principal:
        return await self._identities.of_person(request)

    @serves(auth.watch_changes)
    async def watch_changes(self, request: auth.WatchChanges, stream: StreamCall[auth.Change]) -> Nothing:
        async with contextlib.aclosing(self._wiring.changes.watch(request.since)) as changes:
            async for change in changes:
                await stream.send(change)
                self._wiring.releases.check(stream)
        return Nothing()

    @serves(recovery.follow_auth_log)
    async def follow_recovery_log(self, request: recovery.FollowRecoveryLog, stream: StreamCall[recovery.RecoveryLines]) -> Nothing:
        await self._opened.recovery.log.stream(request.after, stream, self._node.drain_started)
        return Nothing()

    @serves(accounts.get_sign_in_options)
    async def get_sign_in_options(self, request: accounts.GetSignInOptions, call: RpcCall) -> accounts.SignInOptions:
        there_is_one = self._settings.oidc_issuer is not None
        return accounts.SignInOptions(
            open_registration=self._settings.open_registration,
            password_min_length=self._settings.password_min_length,
            oidc_name=self._settings.oidc_name if there_is_one else None,
            iap=self._settings.iap_audience is not None,
        )

    @serves(service_settings.auth_settings)
    async def get_settings(self, request: service_settings.GetSettings, call: RpcCall) -> service_settings.ShownSettings:
        return list_settings(self._settings)

    def _on_refusal(self, method: str, caller: CallerIdentity, principal: auth.Principal | None, error: errors.AimeshError) -> None:
        self._wiring.trail.note(audit_records.refused(method, principal, error.message, address=_address(caller)))

    def _count_refusal(self, reason: AuthFailure) -> None:
        self._auth_failures.labels(reason=reason).inc()


def _address(caller: CallerIdentity) -> str:
    """Return where a client logged in if it came through web or the gateway, otherwise the calling node."""
    return str(caller.caller.node) if isinstance(caller, RpcCall) and caller.caller_role not in CLIENT_FACING else logged_in_from.get()
