"""Methods that every user's request waits for: if a node is slow or dead, another one is asked too."""

import asyncio
from typing import ClassVar
from uuid import UUID

import pytest

from shared import errors, rpc
from shared.api import auth
from shared.rpc import calling
from shared.types import Credential, Role, Tier, UserId, UserRole
from tests import stopwatch
from tests.testnet import IdleService, TestNet, testnet, until


class Gateway(IdleService):
    role: ClassVar[Role] = Role.GATEWAY


class Auth(Gateway):
    role: ClassVar[Role] = Role.AUTH

    def __init__(self) -> None:
        self.asked = 0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.may_go_on = asyncio.Event()

    @rpc.serves(auth.validate_api_key)
    async def validate(self, request: auth.ValidateApiKey, call: rpc.RpcCall) -> auth.Principal:
        self.asked += 1
        match request.api_key:
            case "revoked":
                raise errors.NotAuthenticated("this key is revoked")
            case "store is down":
                raise errors.Unavailable("PostgreSQL does not answer")
            case "slow":
                self.started.set()
                try:
                    await self.may_go_on.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
        return auth.Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)


async def start_auth(net: TestNet) -> Auth:
    service = (await net.start(Auth)).service
    assert isinstance(service, Auth)
    return service


async def test_a_killed_auth_delays_no_users_request() -> None:
    """A dead node is noticed after three seconds of silence; until then, every second new key failed with `deadline_exceeded`."""
    async with testnet() as net:
        auths, door = [await start_auth(net) for _ in range(2)], await net.start(Gateway)

        async def ask() -> None:
            await door.node.rpc.call(auth.validate_api_key, auth.ValidateApiKey(Credential("k")), deadline_seconds=30)

        await until(lambda: len(door.node.directory.usable(Role.AUTH)) == 2, seconds=30)
        while not all(each.asked for each in auths):
            await ask()
        await net.nodes[0].cut()
        await asyncio.gather(*(ask() for _ in range(20)))
        # All calls were answered before the dead node's silence was noticed.
        assert len(door.node.directory.usable(Role.AUTH)) == 2 or not stopwatch.bounds_hold
        assert door.node.pool.in_flight(net.nodes[0].node.id) == 0


async def test_another_node_is_asked_unless_the_first_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "_ASK_ANOTHER_SECONDS", 60)
    async with asyncio.timeout(60), testnet() as net:
        auths, door = [await start_auth(net)], await net.start(Gateway)

        async def ask(key: str) -> None:
            await door.node.rpc.call(auth.validate_api_key, auth.ValidateApiKey(Credential(key)), deadline_seconds=40)

        def asked() -> int:
            return sum(each.asked for each in auths)

        # If there is no other node, the call does not wait for one.
        with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
            await ask("store is down")
        assert asked() == 1
        auths.append(await start_auth(net))
        await until(lambda: len(door.node.directory.usable(Role.AUTH)) == 2, seconds=30)
        with pytest.raises(errors.NotAuthenticated, match="this key is revoked"):
            await ask("revoked")
        assert asked() == 2
        with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
            await ask("store is down")
        assert asked() == 4
        monkeypatch.setattr(calling, "_ASK_ANOTHER_SECONDS", 0.01)
        # Both are slow: once one answers, the call to the other is canceled.
        slow = asyncio.create_task(ask("slow"))
        await asyncio.gather(*(each.started.wait() for each in auths))
        auths[0].may_go_on.set()
        await slow
        await auths[1].cancelled.wait()
        # A caller that leaves cancels both calls.
        auths[0].may_go_on.clear()
        for each in auths:
            each.started.clear()
            each.cancelled.clear()
        slow = asyncio.create_task(ask("slow"))
        await asyncio.gather(*(each.started.wait() for each in auths))
        slow.cancel()
        await asyncio.gather(*(each.cancelled.wait() for each in auths))
