"""The auth service: its parts put together, and what the other services ask it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar

from services.auth import acts, names, tokens
from services.auth.audit.trail import NoTrail, Trail
from services.auth.changes import Changes
from services.auth.failed_logins import FailedLogins
from services.auth.identities import Identities
from services.auth.keyring import Keyring
from services.auth.last_used import LastUsed
from services.auth.logins import Logins
from services.auth.nodes.doorkeeper import Doorkeeper
from services.auth.nodes.members import Members
from services.auth.nodes.mesh_ca import MeshCa
from services.auth.nodes.roster import Roster
from services.auth.parts import Parts
from services.auth.passwords import Passwords
from services.auth.people import People
from services.auth.sessions import Sessions
from services.auth.settings import AuthSettings
from services.auth.store import Store
from services.auth.store import opened as database_of
from services.auth.tokens import AccessTokens
from shared import errors
from shared.api import auth
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.cache import Cache
from shared.node import Node
from shared.rpc import Call, StreamCall, serves
from shared.rpc.gate import Gate, Visitor
from shared.telemetry import logs
from shared.types import Role

_log = logs.get(part="auth")


@dataclass(frozen=True, slots=True)
class Opened:
    """What auth opens at its start."""

    store: Store
    members: Members
    cache: Cache
    passwords: Passwords
    trail: Trail


class AuthService:
    """Users, keys and sessions, over RPC. It keeps nothing that another replica would have to know."""

    role: ClassVar[Role] = Role.AUTH

    def __init__(self, settings: AuthSettings, node: Node, opened: Opened) -> None:
        self._settings = settings
        self._node = node
        self._opened = opened
        self._store = opened.store
        self._sessions = Sessions(
            opened.cache, idle_seconds=settings.session_timeout_seconds, longest_seconds=settings.session_longest_seconds
        )
        self._tokens = AccessTokens(tokens.load_key(settings.jwt_signing_key), issuer=f"aimesh/{settings.mesh}")
        self._last_used = LastUsed(opened.store)
        self._changes = Changes(opened.store, node.drain_started)
        self._identities = Identities(
            opened.store, self._sessions, self._tokens, self._last_used, pepper=settings.api_key_pepper, count_refusal=self._count_refusal
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: AuthSettings, node: Node) -> AsyncIterator["AuthService"]:
        async with contextlib.AsyncExitStack() as stack:
            passwords = stack.enter_context(Passwords.open(min_length=settings.password_min_length))
            database = await stack.enter_async_context(database_of(settings.database_url))
            cache = await stack.enter_async_context(Cache.open(settings.redis_url))
            opened = Opened(Store(database), Members(database), cache, passwords, NoTrail())
            service = cls(settings, node, opened)
            await service._ensure_first_admin()
            ca = MeshCa.load(settings, node, opened.members)
            if ca is not None:
                await ca.begin()
            # A group of its own, so that these end before what they use is closed.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            running = [tasks.create_task(service._changes.run()), tasks.create_task(service._last_used.run())]
            if ca is not None:
                running.append(tasks.create_task(ca.run()))
            node.dispatcher.gate = Gate(service._identities.of, service._on_refusal)
            for part in service._parts(ca):
                node.dispatcher.add(part)
            yield service
            for task in running:
                task.cancel()
            await service._last_used.write()

    def _parts(self, ca: MeshCa | None) -> tuple[object, ...]:
        """What answers the methods, besides the service itself."""
        parts = Parts(
            settings=self._settings,
            node=self._node,
            store=self._store,
            passwords=self._opened.passwords,
            sessions=self._sessions,
            tokens=self._tokens,
            guesses=FailedLogins(self._opened.cache),
            identities=self._identities,
            trail=self._opened.trail,
        )
        members = self._opened.members
        return (People(parts), Logins(parts), Keyring(parts), Doorkeeper(self._node, members, ca), Roster(parts, members, ca))

    async def checks(self) -> tuple[Check, ...]:
        return tuple(await asyncio.gather(self._store.check(), self._opened.cache.check()))

    def asgi(self) -> None:
        """Only RPC; HTTP has its door at the gateway."""

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

    async def _ensure_first_admin(self) -> None:
        password, passwords = self._settings.admin_password, self._opened.passwords
        if password is None or await self._store.has_admin():
            return
        try:
            passwords.check(password, username=names.ADMIN_USERNAME, email=names.ADMIN_EMAIL)
        except errors.BadRequest as error:
            raise errors.BadSettings(f"ADMIN_PASSWORD: {error.message}", hint=error.hint) from error
        if await self._store.ensure_first_admin(await passwords.hash(password)):
            _log.info("first administrator made", username=names.ADMIN_USERNAME)

    def _on_refusal(self, method: str, visitor: Visitor, principal: auth.Principal | None, error: errors.AimeshError) -> None:
        self._opened.trail.note(acts.refused(method, principal, error.message))

    def _count_refusal(self, reason: str) -> None:
        self._node.metrics.auth_failures.labels(reason=reason).inc()
