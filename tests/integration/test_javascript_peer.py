"""Stock @hyperswarm/rpc clients in Node: at a gateway of a small mesh, and at a whole stack with the documentation's program."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from pyhyperswarm import dht, find_node

from shared import errors, rpc
from shared.api import gateway
from shared.api.gateway import ServedModel
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.node_keys import NodeKey
from shared.node.stock_clients.pulled_streams import MAX_ITEMS
from shared.types import ModelName, Role
from tests import outside
from tests.people import Person
from tests.shared.node.streaming import Streaming
from tests.stacks import REPOSITORY, RunningStack
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import IdleService, RunningNode, live, until

MODULES = dht.SIDECAR / "node_modules"
PEER = Path(__file__).parent / "javascript_peer.js"
PAGE = REPOSITORY / "docs" / "howto" / "javascript-peer.md"
SECONDS = 60
#: The limit for every revoked node.
REVOKED_SECONDS = 5
#: Far less than the deadline of a call.
GONE_SECONDS = 5
MODELS = {
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


class Gateway(IdleService):
    role: ClassVar[Role] = Role.GATEWAY

    def __init__(self) -> None:
        self.calls: list[rpc.RpcCall] = []
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    @rpc.serves(gateway.list_models)
    async def list_models(self, request: gateway.ListModels, call: rpc.RpcCall) -> gateway.ServedModels:
        self.calls.append(call)
        return gateway.ServedModels((ServedModel(ModelName("echo"), 1, 4096),))

    @rpc.serves(gateway.list_nodes)
    async def hang(self, request: gateway.ListNodes, call: rpc.RpcCall) -> gateway.NodeRows:
        self.began.set()
        try:
            return await asyncio.Future[gateway.NodeRows]()
        finally:
            self.cancelled.set()


@asynccontextmanager
async def asking(bootstrap: list[str], seed: str, node: str, *requests: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a Node program that sends these requests, one after the other."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(find_node()), str(PEER), str(MODULES), stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"bootstrap": bootstrap, "seed": seed, "node": node, "requests": requests}).encode())
    process.stdin.close()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ask(*where_and_what: Any) -> list[dict[str, Any]]:
    async with asking(*where_and_what) as process, asyncio.timeout(SECONDS):
        said, _ = await process.communicate()
    answers: list[dict[str, Any]] = json.loads(said)
    return answers


@dataclass
class Peer:
    """Such a program, with its own key and one node to call."""

    net: SwarmNet
    to: RunningNode
    key: NodeKey = field(default_factory=lambda: NodeKey(node_keys.new_seed()))

    @property
    def where(self) -> tuple[list[str], str, str]:
        return [str(address) for address in self.net.bootstrap], self.key.raw_seed.hex(), self.to.node.trust.me.raw.hex()

    def hello(self, *, credential: str = "", role: Role = Role.CLIENT) -> tuple[str, object]:
        made = certificates.issue(self.net.ca, Subject(self.key.id, role), self.to.node.started_at.timestamp())
        return "hello", {"certificate": base64.b64encode(made).decode(), "credential": credential}

    async def ask(self, *requests: Any) -> list[dict[str, Any]]:
        return await ask(*self.where, *requests)


LIST_MODELS = ("gateway.listModels", {})


async def test_a_stock_client_introduces_itself_and_calls() -> None:
    async with swarmnet() as net:
        running_service = await net.start(Gateway)
        peer = Peer(net, running_service)
        welcome, models, stream, unknown, other = await peer.ask(
            peer.hello(credential="aip_ada"),
            LIST_MODELS,
            ("gateway.processInferenceRequest", {}),
            ("gateway.noSuch", {}),
            ("node.readHealth", {}),
        )
        methods = ["gateway.listModels", "gateway.listNodes", "node.readRevocations"]
        assert welcome["value"] == {"node": peer.key.id, "role": "client", "methods": methods}
        assert models["value"] == MODELS
        assert [refused["code"] for refused in (stream, unknown, other)] == ["unknown_method", "unknown_method", "wrong_role"]
        assert isinstance(running_service.service, Gateway)
        [call] = running_service.service.calls
        assert (call.caller.role, call.caller.node, call.credential) == (Role.CLIENT, peer.key.id, "aip_ada")
        assert len(call.caller.channel) == 64


async def test_who_cannot_show_a_client_certificate_is_refused() -> None:
    async with swarmnet() as net:
        running_service = await net.start(Gateway)
        other, stranger = Peer(net, running_service), Peer(net, running_service)
        unintroduced, none, stolen, still = await stranger.ask(LIST_MODELS, ("hello", {}), other.hello(), LIST_MODELS)
        assert {refused["code"] for refused in (unintroduced, none, stolen, still)} == {"not_certified"}
        assert unintroduced["message"] == "no certificate was sent on this connection – call `hello` with your certificate first"
        assert stolen["message"] == "the certificate is for another key than the connection's"
        [worker] = await stranger.ask(stranger.hello(role=Role.WORKER))
        assert worker["code"] == "wrong_role"
        assert isinstance(running_service.service, Gateway)
        assert running_service.service.calls == []


async def test_a_key_on_the_allow_list_needs_no_certificate() -> None:
    key = NodeKey(node_keys.new_seed())
    async with swarmnet() as net:
        running_service = await start(net, swarm_clients=(key.raw.hex(),))
        assert [answer.get("value") for answer in await Peer(net, running_service, key).ask(LIST_MODELS)] == [MODELS]
        [refused] = await Peer(net, running_service).ask(LIST_MODELS)
        assert refused["code"] == "not_certified"


async def start(net: SwarmNet, **settings: Any) -> RunningNode:
    """Start a gateway with these settings."""
    key_file = net.join("gateway", Role.GATEWAY)
    started: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    chosen = msgspec.structs.replace(net.settings(key_file), **settings)
    task = net._tasks.create_task(live(Gateway, chosen, started, stop))
    return RunningNode(*(await started), key_file, task, stop)


async def test_a_revoked_client_is_cut_off_in_the_middle_of_a_call() -> None:
    async with swarmnet() as net:
        running_service = await net.start(Gateway)
        assert isinstance(running_service.service, Gateway)
        peer = Peer(net, running_service)
        async with asking(*peer.where, peer.hello(), ("gateway.listNodes", {})) as process, asyncio.timeout(SECONDS):
            await running_service.service.began.wait()
            net.revoke(peer.key.id, running_service)
            await running_service.service.cancelled.wait()
            said, _ = await process.communicate()
        assert json.loads(said)[1]["code"] == "CHANNEL_CLOSED"


async def test_a_call_whose_client_is_gone_is_cancelled() -> None:
    async with swarmnet() as net:
        running_service = await net.start(Gateway)
        assert isinstance(running_service.service, Gateway)
        peer = Peer(net, running_service)
        async with asking(*peer.where, peer.hello(), ("gateway.listNodes", {})) as process:
            async with asyncio.timeout(SECONDS):
                await running_service.service.began.wait()
            process.terminate()
            async with asyncio.timeout(GONE_SECONDS):
                await running_service.service.cancelled.wait()
        await until(lambda: running_service.node.dispatcher.running == 0)


# --- streams ------------------------------------------------------------------------------------------------------------

INFER = "gateway.processInferenceRequest"


def prompt(text: str) -> dict[str, Any]:
    return {"request": {"prompt": text}}


async def test_a_stock_client_gets_a_whole_answer_or_pulls_a_stream_and_two_at_once() -> None:
    async with swarmnet() as net:
        running_service = await net.start(Streaming)
        peer = Peer(net, running_service)
        welcome, whole, stream, (letters, two), large = await peer.ask(
            peer.hello(),
            (INFER, prompt("hi")),
            (INFER, prompt("hi"), "read"),
            [(INFER, prompt("letters"), "read"), (INFER, prompt("two"), "read")],
            (INFER, prompt("large")),
        )
        assert {INFER, f"{INFER}.stream"} < set(welcome["value"]["methods"])
        assert (whole["value"]["text"], whole["value"]["finishReason"]) == ("Hello", "stop")
        assert [item["text"] for item in stream["value"]["items"]] == ["Hel", "lo"]
        assert stream["value"]["end"]["usage"]["completionTokens"] == 2
        assert len(letters["value"]["items"]) == 5_000
        assert [item["text"] for item in two["value"]["items"]] == ["a", "x", "b"]
        assert large["code"] == "too_large"
        await until(lambda: running_service.node.dispatcher.running == 0)


async def test_a_known_client_may_send_a_megabyte_and_is_told_of_more() -> None:
    async with swarmnet() as net:
        running_service = await net.start(Streaming)
        peer = Peer(net, running_service)
        _, fits, too_large = await peer.ask(
            peer.hello(), (INFER, {**prompt("hi"), "idempotencyKey": "x" * 900_000}), (INFER, prompt("x" * 1_100_000))
        )
        assert fits["value"]["text"] == "Hello"
        assert (too_large["code"], "the limit is 1048576" in too_large["message"]) == ("too_large", True)
        [stranger] = await Peer(net, running_service).ask((INFER, {**prompt("hi"), "idempotencyKey": "x" * 900_000}))
        assert stranger["code"] == "CHANNEL_CLOSED"


async def test_a_stream_whose_client_is_gone_ends() -> None:
    """The stream ends long before the client's next pull would be overdue."""
    async with swarmnet() as net:
        running_service = await net.start(Streaming)
        service = running_service.service
        assert isinstance(service, Streaming)
        peer = Peer(net, running_service)
        async with asking(*peer.where, peer.hello(), (INFER, prompt("letters"), "hold")) as process:
            await until(lambda: service.sent > MAX_ITEMS, seconds=SECONDS)
            process.terminate()
            await until(lambda: service.failed == ["cancelled"], seconds=GONE_SECONDS)
        await until(lambda: running_service.node.dispatcher.running == 0)


# --- a whole stack --------------------------------------------------------------------------------------------------


def shown_program() -> str:
    """Return the page's only block of JavaScript."""
    [block] = re.findall(r"```javascript\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


async def run(folder: Path, **variables: str) -> tuple[int | None, str, str]:
    """Run the page's program in the folder that the page names."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(find_node()), "peer.js", cwd=folder, env=variables, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.nightly("stacks")
async def test_the_program_of_the_documentation_calls_a_whole_stack(stack: RunningStack, ann: Person, tmp_path: Path) -> None:
    (tmp_path / "peer.js").write_text(shown_program(), encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(MODULES)
    with outside.machine() as elsewhere:
        joined = await elsewhere.aicli("mesh", "connect", await outside.ticket(stack, "client"))
        assert joined.status == 0, joined.err
        exported = await elsewhere.aicli("--profile", "default", "mesh", "export")
    assert exported.status == 0, exported.err
    assert "your profile's key" in exported.err
    (tmp_path / "mesh.json").write_text(exported.out, encoding="utf-8")
    mesh = exported.json()

    status, out, err = await run(tmp_path, AICLI_API_KEY=ann.key.secret)
    assert status == 0, err
    first, second, streamed = out.split("\n", 2)
    said, answer = json.loads(first), json.loads(second)
    assert "echo" in said["models"]
    assert said["remaining"] > 0
    assert answer["text"]
    assert streamed
    await stack.recorded(ann.id, 2)
    async with stack.database("gateway") as database:
        query = "SELECT status, completion_tokens FROM gateway.request_logs WHERE user_id = $1 ORDER BY id"
        (whole, tokens), (other, _) = await database.fetch(query, ann.id)
    assert (whole, tokens, other) == ("success", answer["usage"]["completionTokens"], "success"), "each was billed once"

    status, _, err = await run(tmp_path, AICLI_API_KEY="aip_of-nobody")
    assert (status, err.split()[0]) == (1, errors.NotAuthenticated.code)

    # As the page says for a program that runs longer than a day.
    hello = ("hello", {"certificate": mesh["certificate"]})
    [auth] = mesh["nodes"]["auth"]
    welcome, renewed = await ask(mesh["bootstrap"], mesh["seed"], auth, hello, ("auth.renewCertificate", {}))
    fresh = certificates.read(base64.b64decode(renewed["value"]["certificate"]))
    assert (fresh.role, fresh.node) == (Role.CLIENT, welcome["value"]["node"])
    assert renewed["value"]["bootstrap"] == mesh["bootstrap"]


@pytest.mark.parametrize("name", ["MAX_RUNNING", "DEADLINE_SECONDS"])
def test_the_limits_that_the_page_names_are_those_of_the_code(name: str) -> None:
    from shared.node.stock_clients import stock_calls

    number = vars(stock_calls)[name]
    assert f"{number:g} " in PAGE.read_text(encoding="utf-8")
