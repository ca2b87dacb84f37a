"""Users of a running stack: registered, with a tier and keys, as `aicli` would create them."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.api import auth
from shared.node.client_node import ClientNode
from shared.types import Credential, KeyId, Permission, Tier, UserId
from tests.stacks import RunningStack

NO_LIMITS = auth.ApiKeyLimits()


@dataclass(frozen=True, slots=True)
class Key:
    id: KeyId
    secret: Credential


@dataclass(frozen=True, slots=True)
class Person:
    """A user with an account, an open session and a first key."""

    id: UserId
    username: str
    email: str
    password: str
    access_token: Credential
    key: Key


@dataclass(frozen=True, slots=True)
class ApiClient:
    """Creates accounts with the admin's key."""

    mesh: ClientNode
    admin_key: Credential

    async def register(self, name: str, tier: Tier = Tier.FREE, *, is_added: bool = False) -> Person:
        """Register a user whose name begins with ``name``. ``is_added``: by the administrator, who verifies the address."""
        username, password = f"{name}-{secrets.token_hex(4)}", secrets.token_urlsafe(18)
        data = auth.UserData(username, f"{username}@example.org", password)
        user = await self.mesh.rpc.call(auth.register_user, auth.RegisterUser(data), credential=self.admin_key if is_added else None)
        if tier is not Tier.FREE or is_added:
            await self.mesh.rpc.call(auth.set_tier, auth.SetTier(username, tier), credential=self.admin_key)
        session = await self.mesh.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(password, username)))
        key = await self._make_key(session.access_token, "first", NO_LIMITS)
        return Person(user.id, username, data.email, password, session.access_token, key)

    async def make_key(self, person: Person, name: str, limits: auth.ApiKeyLimits = NO_LIMITS) -> Key:
        return await self._make_key(person.access_token, name, limits)

    async def make_naming_key(self, name: str, *, serves_strangers: bool = False) -> Key:
        """Return a key of the administrator that names the person of each request."""
        scopes = (Permission.INFER, Permission.READ_MODELS, Permission.NAME_USERS)
        bounds = auth.KeyBounds((*scopes, Permission.SERVE_STRANGERS) if serves_strangers else scopes)
        made = await self.mesh.rpc.call(auth.generate_api_key, auth.GenerateApiKey(name, bounds=bounds), credential=self.admin_key)
        return Key(made.key.id, made.api_key)

    async def _make_key(self, credential: Credential, name: str, limits: auth.ApiKeyLimits) -> Key:
        request = auth.GenerateApiKey(name, limits=limits, all_rights=True)
        made = await self.mesh.rpc.call(auth.generate_api_key, request, credential=credential)
        return Key(made.key.id, made.api_key)


@asynccontextmanager
async def api_client(stack: RunningStack) -> AsyncIterator[ApiClient]:
    async with stack.client() as mesh:
        yield ApiClient(mesh, stack.api_key)
