"""The auth service: its RPC methods answered by the parts that ``wiring`` joins, and what the other services ask it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import ClassVar

from services.auth import audit_records, wiring
from services.auth.client_facing_roles import DOORS
from services.auth.oidc.oidc_rpc import OidcDependencies
from services.auth.oidc.oidc_store import OidcStore
from services.auth.sessions.identities import logged_in_from
from services.auth.settings import AuthSettings
from services.auth.wiring import OpenedStores, Wiring
from shared import errors
from shared.api import accounts, auth
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.node import Node
from shared.rpc import RpcCall, StreamCall, serves
from shared.rpc.authorization import Authorizer, CallerIdentity
from shared.telemetry import logs
from shared.telemetry.instruments import AuthFailure
from shared.types import Role

_log = logs.get(part="auth")


class AuthService:
    """Users, keys and sessions, over RPC. It keeps nothing that another replica would have to know."""

    role: ClassVar[Role] = Role.AUTH

    def __init__(self, settings: AuthSettings, node: Node, opened: OpenedStores) -> None:
        self._settings = settings
        self._node = node
        self._opened = opened
        self._auth_failures = node.metrics.auth_failures
        self._assembly = Wiring(settings, node, opened, self._count_refusal)
        self._identities = self._assembly.identities

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: AuthSettings, node: Node) -> AsyncIterator["AuthService"]:
        async with contextlib.AsyncExitStack() as stack:
            opened = await stack.enter_async_context(wiring.opened(settings))
            service = cls(settings, node, opened)
            parts = service._assembly
            ca = parts.mesh_ca()
            if ca is not None:
                await ca.begin()
            equipment = await stack.enter_async_context(
                OidcDependencies.open(settings, opened.cache, OidcStore(opened.database, parts.trail))
            )
            joined = parts.join(ca, equipment)
            # A group of its own, so that these end before what they use is closed.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(work()) for work in joined.work]
            node.dispatcher.gate = Authorizer(service._identities.of, service._on_refusal)
            for handler in joined.handlers:
                node.dispatcher.add(handler)
            yield service
            for task in running:
                task.cancel()
            await parts.last_used.write()
            await parts.upkeep.finish()

    async def checks(self) -> tuple[Check, ...]:
        return await self._opened.checks()

    def asgi(self) -> None:
        """Only RPC; HTTP has its door at the gateway."""

    # --- for the other services ----------------------------------------------------------------------------------------

    @serves(auth.validate_api_key)
    async def validate_api_key(self, request: auth.ValidateApiKey, call: RpcCall) -> auth.Principal:
        principal = await self._identities.of_key(request.api_key)
        _log.info("key recognised", key_id=principal.key_id, user_id=principal.user_id)
        return principal

    @serves(auth.identify)
    async def identify(self, request: auth.Identify, call: RpcCall) -> auth.Principal:
        return await self._identities.of(request.credential)

    @serves(auth.watch_changes)
    async def watch_changes(self, request: auth.WatchChanges, stream: StreamCall[auth.Change]) -> Nothing:
        async with contextlib.aclosing(self._assembly.changes.watch(request.since)) as changes:
            async for change in changes:
                await stream.send(change)
        return Nothing()

    @serves(accounts.get_sign_in_options)
    async def get_sign_in_options(self, request: accounts.GetSignInOptions, call: RpcCall) -> accounts.SignInOptions:
        there_is_one = self._settings.oidc_issuer is not None
        return accounts.SignInOptions(
            open_registration=self._settings.open_registration,
            password_min_length=self._settings.password_min_length,
            oidc_name=self._settings.oidc_name if there_is_one else None,
        )

    # --- counted and told ----------------------------------------------------------------------------------------------

    def _on_refusal(self, method: str, visitor: CallerIdentity, principal: auth.Principal | None, error: errors.AimeshError) -> None:
        self._assembly.trail.note(audit_records.refused(method, principal, error.message, address=_address(visitor)))

    def _count_refusal(self, reason: AuthFailure) -> None:
        self._auth_failures.labels(reason=reason).inc()


def _address(visitor: CallerIdentity) -> str:
    """Of whoever comes by a door, where they logged in; else the node that calls."""
    return str(visitor.caller.node) if isinstance(visitor, RpcCall) and visitor.caller_role not in DOORS else logged_in_from.get()
