"""Which requests of stock @hyperswarm/rpc clients are answered, without a swarm: the keys count as proven by Noise."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from pyhyperswarm import Request, RequestRefused

from shared import errors, rpc
from shared.api import auth, gateway
from shared.api.gateway import ServedModel
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.node_keys import Authority, NodeKey
from shared.identity.trust import Trust
from shared.node.lifecycle import background
from shared.node.stock_clients import stock_calls, stock_rpc_clients
from shared.node.stock_clients.stock_rpc_clients import StockRpcClients
from shared.types import ModelName, NodeId, Peer, Role

NOW = 1_767_225_600.0
CA, FOREIGN_CA = (Authority(node_keys.new_authority_seed()) for _ in range(2))
#: A model of this name makes the method hang, or fail with a bug.
HANG, BUG = "hang", "bug"
LIST_MODELS, STREAM, FOR_GATEWAYS = gateway.list_models.name, gateway.process_inference_request.name, auth.validate_api_key.name


def new_key() -> NodeKey:
    return NodeKey(node_keys.new_seed())


def certificate(key: NodeKey, role: Role = Role.CLIENT, *, authority: Authority = CA, at: float = NOW) -> bytes:
    return certificates.issue(authority, Subject(key.id, role, "ada", (("desk", "left"),)), at)


@dataclass
class RunningService:
    """A node with a few methods, and what it observed."""

    trust: Trust
    dispatcher: rpc.Dispatcher
    calls: list[rpc.RpcCall] = field(default_factory=list)
    bugs: list[Exception] = field(default_factory=list)
    #: Set when a hanging call has begun, and when it was canceled.
    began: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    allowed: tuple[bytes, ...] = ()
    now: float = NOW
    _outsiders: StockRpcClients | None = None

    @property
    def outsiders(self) -> StockRpcClients:
        if self._outsiders is None:
            self._outsiders = StockRpcClients(self.trust, self.dispatcher, self.allowed, lambda: self.now)
        return self._outsiders

    def revoke(self, *nodes: NodeId) -> None:
        self.trust.take_list(certificates.issue_list(CA, self.trust.number + 1, 1, nodes, self.now))

    @rpc.serves(gateway.list_models)
    async def list_models(self, request: gateway.ListModels, call: rpc.RpcCall) -> gateway.ServedModels:
        self.calls.append(call)
        if call.credential == HANG:
            self.began.set()
            try:
                await asyncio.Future[None]()
            finally:
                self.cancelled.set()
        if call.credential == BUG:
            raise KeyError("a secret that must not travel")
        return gateway.ServedModels((ServedModel(ModelName("echo"), 1, 4096),))

    @rpc.serves(gateway.get_service_health)
    async def health(self, request: gateway.GetServiceHealth, call: rpc.RpcCall) -> gateway.ServiceHealth:
        raise errors.Limited("too fast", hint="wait", retry_after_seconds=1)

    @rpc.serves(auth.set_tier)
    async def set_tier(self, request: auth.SetTier, call: rpc.RpcCall) -> auth.User:
        raise AssertionError("no test gets here")

    @rpc.serves(gateway.process_inference_request)
    async def stream(self, request: gateway.ProcessInferenceRequest, call: rpc.StreamCall[Any]) -> gateway.InferenceResult:
        raise AssertionError("nobody gets here")

    @rpc.serves(auth.validate_api_key)
    async def for_gateways(self, request: auth.ValidateApiKey, call: rpc.RpcCall) -> auth.Principal:
        raise AssertionError("no client gets here")


def new_service(tasks: asyncio.TaskGroup, role: Role = Role.GATEWAY) -> RunningService:
    bugs: list[Exception] = []
    dispatcher = rpc.Dispatcher(tasks, lambda method, status, seconds: None, lambda method, error: bugs.append(error))
    running_service = RunningService(Trust(new_key(), role, (CA.id,)), dispatcher, bugs=bugs)
    dispatcher.add(running_service)
    return running_service


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with background() as tasks:
        yield new_service(tasks)


@dataclass
class Visitor:
    """A peer on one connection."""

    running_service: RunningService
    key: NodeKey = field(default_factory=new_key)
    channel: bytes = field(default_factory=lambda: secrets.token_bytes(64))

    async def raw(self, method: str, value: bytes) -> bytes:
        return await self.running_service.outsiders.answer(Request(self.key.raw, self.channel, method, value))

    async def ask(self, method: str, **fields: object) -> Any:
        return json.loads(await self.raw(method, json.dumps(fields).encode()))

    async def refused(self, method: str, **fields: object) -> str:
        """Return the code of the refusal."""
        with pytest.raises(RequestRefused) as caught:
            await self.ask(method, **fields)
        return caught.value.code

    async def introduce(self, *, credential: str = "") -> Any:
        return await self.ask("hello", certificate=text(certificate(self.key)), credential=credential)


def text(body: bytes) -> str:
    """Encode bytes as JSON does."""
    return base64.b64encode(body).decode()


# --- who is admitted ----------------------------------------------------------------------------------------------------


async def test_a_certified_client_is_admitted_with_its_identity(running_service: RunningService) -> None:
    visitor = Visitor(running_service)
    welcome = await visitor.introduce()
    assert (welcome["node"], welcome["role"]) == (visitor.key.id, "client")
    assert welcome["methods"] == [
        "auth.setTier", "gateway.getServiceHealth", "gateway.listModels", STREAM, f"{STREAM}.stream"
    ], "none for gateways"  # fmt: skip
    assert await visitor.ask(LIST_MODELS) == {
        "models": [
            {
                "name": "echo",
                "workers": 1,
                "contextTokens": 4096,
                "aliases": [],
                "onlyEmbeds": False,
                "providers": [],
                "regions": [],
                "abilities": [],
                "parent": None,
                "upstreamModels": [],
                "suitsAgents": False,
                "agentsHint": "",
                "rightCalls": None,
            }
        ]
    }
    labels = (("desk", "left"),)
    assert running_service.calls[0].caller == Peer(Role.CLIENT, visitor.key.id, visitor.key.id, "ada", labels, visitor.channel)
    assert running_service.calls[0].credential is None


async def test_a_client_without_an_introduction_is_refused(running_service: RunningService) -> None:
    known = Visitor(running_service)
    await known.introduce()
    assert await Visitor(running_service).refused(LIST_MODELS) == "not_certified"
    assert await Visitor(running_service, known.key).refused(LIST_MODELS) == "not_certified", "another connection of the same key"
    assert running_service.calls == []


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(lambda key: b"", "not_certified", id="none"),
        pytest.param(lambda key: b"\xc1" * 40, "not_certified", id="not a certificate"),
        pytest.param(lambda key: certificate(key, authority=FOREIGN_CA), "not_certified", id="one of another mesh"),
        pytest.param(lambda key: certificate(new_key()), "not_certified", id="one of another key"),
        pytest.param(lambda key: certificate(key, Role.WORKER), "wrong_role", id="a worker's"),
        pytest.param(lambda key: certificate(key, Role.GATEWAY), "wrong_role", id="a gateway's"),
        pytest.param(lambda key: certificate(key, at=NOW - 25 * 3600), "certificate_expired", id="an expired certificate"),
        pytest.param(lambda key: certificate(key, at=NOW + 3600), "clock_skew", id="one from the future"),
    ],
)
async def test_an_invalid_certificate_is_refused(running_service: RunningService, make: Any, code: str) -> None:
    visitor = Visitor(running_service)
    assert await visitor.refused("hello", certificate=text(make(visitor.key))) == code
    assert await visitor.refused(LIST_MODELS) == "not_certified"


async def test_a_certificate_expires_while_the_connection_is_open(running_service: RunningService) -> None:
    visitor = Visitor(running_service)
    await visitor.introduce()
    running_service.now += 24 * 3600 + certificates.LEEWAY_SECONDS
    await visitor.ask(LIST_MODELS)
    running_service.now += 1
    assert await visitor.refused(LIST_MODELS) == "certificate_expired"
    await visitor.ask("hello", certificate=text(certificate(visitor.key, at=running_service.now)))
    await visitor.ask(LIST_MODELS)


async def test_a_key_revoked_after_its_introduction_is_refused(running_service: RunningService) -> None:
    visitor, other = Visitor(running_service), Visitor(running_service)
    for each in (visitor, other):
        await each.introduce()
    running_service.revoke(visitor.key.id)
    assert await visitor.refused(LIST_MODELS) == "node_revoked"
    assert await visitor.refused("hello", certificate=text(certificate(visitor.key))) == "node_revoked"
    await other.ask(LIST_MODELS)


async def test_an_allow_listed_key_needs_no_certificate_and_no_introduction(running_service: RunningService) -> None:
    visitor = Visitor(running_service)
    running_service.allowed = (visitor.key.raw,)
    await visitor.ask(LIST_MODELS)
    await visitor.ask("hello", credential="aip_ada")
    await visitor.ask(LIST_MODELS)
    assert [call.credential for call in running_service.calls] == [None, "aip_ada"]
    assert running_service.calls[0].caller.channel, "NATS would vouch for a peer without a channel, and auth enroll it"
    assert await Visitor(running_service).refused(LIST_MODELS) == "not_certified"
    running_service.revoke(visitor.key.id)
    assert await visitor.refused(LIST_MODELS) == "node_revoked"


async def test_a_worker_accepts_no_client_calls() -> None:
    async with background() as tasks:
        worker = new_service(tasks, Role.WORKER)
        visitor = Visitor(worker)
        assert await visitor.refused("hello", certificate=text(certificate(visitor.key))) == "wrong_role"


async def test_the_number_of_remembered_introductions_is_bounded(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_rpc_clients, "MAX_CLIENTS", 2)
    key = new_key()
    first, second, third = (Visitor(running_service, key) for _ in range(3))
    await first.introduce()
    await second.introduce()
    await first.ask(LIST_MODELS)
    await third.introduce()
    assert await second.refused(LIST_MODELS) == "not_certified", "the client that was silent for the longest time was forgotten"
    for visitor in (first, third):
        await visitor.ask(LIST_MODELS)


# --- what they may call -------------------------------------------------------------------------------------------------


async def test_the_credential_of_the_introduction_is_used_for_every_call(running_service: RunningService) -> None:
    visitor, other = Visitor(running_service), Visitor(running_service)
    await visitor.introduce(credential="aip_ada")
    await other.introduce(credential="aip_bob")
    for each in (visitor, other, visitor):
        await each.ask(LIST_MODELS)
    assert [call.credential for call in running_service.calls] == ["aip_ada", "aip_bob", "aip_ada"]


async def test_msgpack_is_answered_in_msgpack(running_service: RunningService) -> None:
    visitor = Visitor(running_service)
    said = msgpack.packb({"certificate": certificate(visitor.key), "credential": "aip_ada"})
    assert msgpack.unpackb(await visitor.raw("hello", said))["node"] == visitor.key.id
    assert msgpack.unpackb(await visitor.raw(LIST_MODELS, msgpack.packb({})))["models"][0]["contextTokens"] == 4096
    assert json.loads(await visitor.raw(LIST_MODELS, b""))["models"], "nothing is JSON"


@pytest.mark.parametrize(
    ("method", "value", "code"),
    [
        pytest.param("gateway.listModels.stream", b"{}", "bad_request", id="the stream of a method that has none"),
        pytest.param("stream.next", b'{"handle": 1}', "not_found", id="a stream that there is not"),
        pytest.param("stream.next", b"{}", "bad_request", id="no handle"),
        pytest.param("auth.setTier", b'{"user": "x", "tier": "pro", "wish": 1}', "bad_request", id="an unknown field"),
        pytest.param(FOR_GATEWAYS, b"{}", "wrong_role", id="a method that clients may not call"),
        pytest.param("gateway.noSuch", b"{}", "unknown_method", id="an unknown method"),
        pytest.param("\ufffd" * 40_000, b"{}", "unknown_method", id="a method's name that is none"),
        pytest.param("auth.setTier", b"{", "bad_request", id="a body that is no JSON"),
        pytest.param("auth.setTier", b'{"user": 1}', "bad_request", id="a body that does not fit"),
        pytest.param("auth.setTier", b'{"user": "\xff"}', "bad_request", id="a body that is no text"),
        pytest.param("auth.setTier", b"{" + b'"a":[' * 20_000, "bad_request", id="a body that is too deep"),
        pytest.param("auth.setTier", b"\xc1", "bad_request", id="a body that is no msgpack"),
        pytest.param("hello", b'{"certificate": 1}', "bad_request", id="an introduction that is none"),
        pytest.param("hello", b'{"credential": "' + b"k" * 2000 + b'"}', "bad_request", id="a credential that is too long"),
        pytest.param("gateway.getServiceHealth", b"{}", "rate_limited", id="what the handler refuses"),
    ],
)
async def test_an_invalid_request_is_refused(running_service: RunningService, method: str, value: bytes, code: str) -> None:
    visitor = Visitor(running_service)
    await visitor.introduce()
    with pytest.raises(RequestRefused) as caught:
        await visitor.raw(method, value)
    assert caught.value.code == code
    assert len(caught.value.message) < 500
    assert not running_service.bugs


async def test_the_hint_is_sent_with_the_message(running_service: RunningService) -> None:
    with pytest.raises(RequestRefused) as caught:
        await Visitor(running_service).ask(LIST_MODELS)
    assert caught.value.message == "no certificate was sent on this connection – call `hello` with your certificate first"


async def test_details_of_a_bug_are_only_sent_to_our_own_services(running_service: RunningService) -> None:
    visitor = Visitor(running_service)
    await visitor.introduce(credential=BUG)
    with pytest.raises(RequestRefused) as caught:
        await visitor.ask(LIST_MODELS)
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.message
    assert len(running_service.bugs) == 1


# --- how many, and for how long -----------------------------------------------------------------------------------------


async def test_concurrent_calls_are_limited(running_service: RunningService) -> None:
    busy, free = Visitor(running_service), Visitor(running_service)
    await busy.introduce(credential=HANG)
    await free.introduce()
    running = [asyncio.ensure_future(busy.ask(LIST_MODELS)) for _ in range(stock_calls.MAX_RUNNING)]
    await running_service.began.wait()
    assert len(running_service.calls) == running_service.dispatcher.running == stock_calls.MAX_RUNNING
    assert await free.refused(LIST_MODELS) == "overloaded"
    running[0].cancel()
    await running_service.cancelled.wait()
    await free.ask(LIST_MODELS)
    for call in running:
        call.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert running_service.dispatcher.running == 0


async def test_a_shutdown_waits_for_calls_and_accepts_no_new_ones(running_service: RunningService) -> None:
    visitor = Visitor(running_service)
    await visitor.introduce(credential=HANG)
    running = asyncio.ensure_future(visitor.ask(LIST_MODELS))
    await running_service.began.wait()
    running_service.dispatcher.drain_started.set()
    assert await visitor.refused(LIST_MODELS) == "draining"
    await running_service.dispatcher.drained(0.01)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert running_service.cancelled.is_set()
