"""Calls between real nodes over a real NATS server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from shared import errors, rpc
from shared.api import auth, gateway, generation, inference
from shared.node.member import Node
from shared.types import Credential, FinishReason, ModelName, Role, UserRole, Tier, UserId
from shared.api.gateway import Check
from tests.testnet import testnet, until
from uuid import UUID

OWNER = auth.Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)


class Auth:
    role: ClassVar[Role] = Role.AUTH

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cancelled = asyncio.Event()
        self.sent = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: object, node: Node) -> AsyncIterator["Auth"]:
        yield cls(node)

    async def checks(self) -> tuple[Check, ...]:
        return ()

    def asgi(self) -> None:
        return None

    @rpc.serves(auth.login_user)
    async def login(self, request: auth.LoginUser, call: rpc.Call) -> auth.Session:
        if request.credentials.password == "wrong":
            raise errors.NotAuthenticated("no", hint="try again")
        if request.credentials.password == "hang":
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        if request.credentials.password == "bug":
            raise KeyError("secret")
        user = auth.User(OWNER.user_id, "ada", request.credentials.password, UserRole.USER, Tier.FREE, True, self.node.started_at)
        return auth.Session(Credential("t"), 600, "s", user)


async def test_a_client_calls_a_service() -> None:
    async with testnet() as net:
        await net.start(Auth)
        client = await net.client()
        reply = await client.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials("pw")))
        assert reply.user.email == "pw"
        big = "x" * 500_000
        reply = await client.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(big)))
        assert reply.user.email == big
        with pytest.raises(errors.NotAuthenticated, match="no"):
            await client.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials("wrong")))
        with pytest.raises(errors.UnknownMethod):
            await client.rpc.call(auth.list_users, auth.ListUsers())
