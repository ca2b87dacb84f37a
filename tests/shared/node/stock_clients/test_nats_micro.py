"""NATS micro, as an operator's stock NATS client sees it."""

import json

import msgpack
import nats
import pytest

from shared.types import Role
from tests.shared.rpc.test_mesh import Auth, Gateway, Metrics, Worker
from tests.testnet import MESH, TestNet, testnet

BODY = {"credentials": {"username": "ada", "password": "whoami"}}


#: The client's default of half a second is shorter than a busy machine may pause.
SECONDS = 30


async def operator(net: TestNet) -> nats.NATS:
    return await nats.connect(net.server.url, nkeys_seed_str=net.server.key("op", Role.OPERATOR).read_text())


async def test_every_service_can_be_listed() -> None:
    async with testnet() as net:
        for service in (Auth, Gateway, Worker, Metrics):
            await net.start(service)
        stock = await operator(net)
        inbox = stock.new_inbox()
        answers = await stock.subscribe(inbox)
        await stock.publish("$SRV.PING", reply=inbox)
        pings = [json.loads((await answers.next_msg(SECONDS)).data) for _ in range(4)]
        assert {ping["name"] for ping in pings} == {"auth", "gateway", "worker", "metrics"}
        assert {ping["type"] for ping in pings} == {"io.nats.micro.v1.ping_response"}
        info = json.loads((await stock.request("$SRV.INFO.auth", timeout=SECONDS)).data)
        assert info["type"] == "io.nats.micro.v1.info_response"
        endpoints = {endpoint["name"]: endpoint["subject"] for endpoint in info["endpoints"]}
        assert endpoints["loginUser"] == f"aimesh.{MESH}.rpc.auth.loginUser"
        await stock.request(endpoints["loginUser"], msgpack.packb(BODY), timeout=SECONDS)
        stats = json.loads((await stock.request(f"$SRV.STATS.auth.{info['id']}", timeout=SECONDS)).data)
        [login] = [endpoint for endpoint in stats["endpoints"] if endpoint["name"] == "loginUser"]
        assert (login["num_requests"], login["num_errors"]) == (1, 0)
        await stock.close()


async def test_a_method_is_called_with_msgpack_or_json_and_a_credential() -> None:
    async with testnet() as net:
        await net.start(Auth)
        stock = await operator(net)
        subject = f"aimesh.{MESH}.rpc.auth.loginUser"
        plain = await stock.request(subject, msgpack.packb(BODY), headers={"Authorization": "Bearer k1"}, timeout=SECONDS)
        assert msgpack.unpackb(plain.data)["user"]["email"] == "operator k1"
        headers = {"content-type": "application/json", "authorization": "Bearer k2"}
        as_json = await stock.request(subject, json.dumps(BODY).encode(), headers=headers, timeout=SECONDS)
        assert json.loads(as_json.data)["user"]["email"] == "operator k2"
        await stock.close()


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        pytest.param("loginUser", b"\xc1", "400", "bad_request", id="a body that is none"),
        pytest.param("noSuchMethod", b"\x80", "404", "unknown_method", id="an unknown method"),
        pytest.param("loginUser", msgpack.packb({"credentials": {"password": "wrong"}}), "401", "not_authenticated", id="a refusal"),
        pytest.param("loginUser", msgpack.packb({"credentials": {"password": "bug"}}), "500", "internal", id="a bug"),
        pytest.param("readHealth", b"\x80", "403", "wrong_role", id="a method that operators may not call"),
    ],
)
async def test_errors_are_sent_as_headers_and_json(method: str, body: bytes, status: str, code: str) -> None:
    async with testnet() as net:
        await net.start(Auth)
        stock = await operator(net)
        reply = await stock.request(f"aimesh.{MESH}.rpc.auth.{method}", body, timeout=SECONDS)
        assert reply.headers is not None
        assert reply.headers["Nats-Service-Error-Code"] == status
        assert json.loads(reply.data)["error"]["code"] == code
        await stock.close()


async def test_a_reply_goes_only_to_an_inbox() -> None:
    """A service may publish to every node; a caller must not be able to direct its reply to one of them."""
    async with testnet() as net:
        await net.start(Auth)
        victim = await net.start(Gateway)
        stock = await operator(net)
        target = f"aimesh.{MESH}.gateway.{victim.node.id}.auth.{net.nodes[0].node.id}"
        heard: list[bytes] = []
        victim.node.node_transports.nats.nats.subscribe(target, lambda message: heard.append(message.payload))
        await victim.node.node_transports.nats.nats.flush()
        await stock.publish(f"aimesh.{MESH}.rpc.auth.loginUser", msgpack.packb(BODY), reply=target)
        await stock.request(f"aimesh.{MESH}.rpc.auth.loginUser", msgpack.packb(BODY), timeout=SECONDS)
        await victim.node.node_transports.nats.nats.flush()
        # Link messages, such as when the gateway asks auth for its certificate, are arrays of three or four.
        assert [payload for payload in heard if payload[:1] not in (b"\x94", b"\x93")] == []
        await stock.close()
