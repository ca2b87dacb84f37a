"""Replicas whose features differ, as while they are upgraded: a call goes to one that has the feature."""

import asyncio
from typing import ClassVar

import msgspec
import pytest

from shared import access_table, answer_table, errors, rpc
from shared.access_rules import NODE
from shared.answer_table import Answers
from shared.api.method import Body, Method, Nothing
from shared.node.member import Node
from shared.protocol.directory import Announcement
from shared.types import Role
from tests.testnet import IdleService, TestNet, testnet, until


class Say(Body, frozen=True):
    #: As if it were declared by the feature `hello`.
    __module__ = "features.hello.contract"


class Other(Body, frozen=True):
    """Of the core."""


say = Method("gateway.say", Say, Nothing, callers={Role.AUTH})
other = Method("gateway.other", Other, Nothing, callers={Role.AUTH})


class Without(IdleService):
    role: ClassVar[Role] = Role.GATEWAY
    features: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.asked = 0


class With(Without):
    features = ("hello",)

    @rpc.serves(say)
    async def answer(self, request: Say, call: rpc.RpcCall) -> Nothing:
        self.asked += 1
        return Nothing()


class Door(Without):
    """It calls the others."""

    role = Role.AUTH


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    describe = Node._describe

    def with_features(node: Node) -> Announcement:
        return msgspec.structs.replace(describe(node), features=getattr(node._service, "features", ()))

    monkeypatch.setattr(Node, "_describe", with_features)
    for name in (say.name, other.name):
        monkeypatch.setitem(access_table.METHODS, name, NODE)  # type: ignore[arg-type]  # a dict
        monkeypatch.setitem(answer_table.METHODS, name, Answers.SERVICES)  # type: ignore[arg-type]


async def start(net: TestNet, *kinds: type[Without]) -> Node:
    """Start these gateways, and return another node that sees them."""
    for kind in kinds:
        await net.start(kind)
    door = (await net.start(Door)).node
    await until(lambda: len(door.directory.usable(Role.GATEWAY)) == len(kinds), seconds=30)
    return door


async def test_a_call_goes_to_the_one_replica_that_has_the_feature() -> None:
    async with asyncio.timeout(60), testnet() as net:
        door = await start(net, Without, Without, With)
        for _ in range(20):
            await door.rpc.call(say, Say())
        assert [each.service.asked for each in net.nodes if isinstance(each.service, Without)] == [0, 0, 20, 0]


async def test_it_fails_with_the_name_of_the_feature_that_nobody_has_and_others_as_before() -> None:
    async with asyncio.timeout(60), testnet() as net:
        door = await start(net, Without, Without)
        with pytest.raises(errors.Unavailable, match="no gateway has the feature hello now"):
            await door.rpc.call(say, Say())
        with pytest.raises(errors.UnknownMethod):
            await door.rpc.call(other, Other())
        with pytest.raises(errors.UnknownMethod):
            await door.rpc.call(say, Say(), to=net.nodes[0].node.id)
