"""Real nodes over Hyperswarm, with and without NATS: calls both ways, their paths, and how fast a revoked node is disconnected."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio
from pyhyperswarm import dht

from shared import errors, rpc
from shared.api import auth, inference
from shared.api import node as node_api
from shared.api.generation import GenerationEnd, Usage
from shared.identity import node_keys
from shared.node import membership_file
from shared.node.client_node import ClientNode
from shared.node.member import Node
from shared.protocol import duplicate_keys
from shared.protocol.directory import DirectoryEntry
from shared.types import Credential, FinishReason, ModelName, RequestId, Role, Tier, UserId, UserRole
from tests import stopwatch, tiers
from tests.front_door import FrontDoor
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import NodeService, RunningNode, live, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
REQUEST_ID = RequestId(UUID(int=7))


def prompt(text: str, tokens: int) -> inference.ProcessPrompt:
    return inference.ProcessPrompt(text, inference.ModelConfig(model=ModelName("m"), max_tokens=tokens), REQUEST_ID)


class _Service(NodeService):
    role: ClassVar[Role]

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()


class Auth(_Service):
    role: ClassVar[Role] = Role.AUTH

    @rpc.serves(auth.login_user)
    async def login(self, request: auth.LoginUser, call: rpc.RpcCall) -> auth.LoginSession:
        email = f"{call.caller.role} {call.credential}"
        user = auth.User(UserId(UUID(int=1)), "ada", email, UserRole.USER, Tier.FREE, True, self.node.started_at)
        return auth.LoginSession(Credential("t"), 600, "s", user)

    @rpc.serves(auth.validate_api_key)
    async def validate(self, request: auth.ValidateApiKey, call: rpc.RpcCall) -> auth.Principal:
        raise AssertionError("no client gets here")


class Gateway(_Service):
    role: ClassVar[Role] = Role.GATEWAY


class Metrics(_Service):
    role: ClassVar[Role] = Role.METRICS


class Worker(_Service):
    role: ClassVar[Role] = Role.WORKER

    @rpc.serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: rpc.StreamCall[inference.Chunk]) -> GenerationEnd:
        for number in range(request.model_config.max_tokens or 0):
            await stream.send(inference.Chunk(str(request.prompt), (number,)))
        if request.prompt == "hang":
            self.started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return GenerationEnd(FinishReason.STOP, Usage(1, request.model_config.max_tokens or 0))


def usable(node: RunningNode | ClientNode, role: Role) -> list[DirectoryEntry]:
    nodes = node.node.directory if isinstance(node, RunningNode) else node.directory
    return nodes.usable(role)


async def sees(node: RunningNode | ClientNode, other: RunningNode, *, seconds: float = 10.0) -> None:
    await until(lambda: other.node.id in {entry.node for entry in usable(node, other.node.role)}, seconds=seconds)


@dataclass
class Nodes:
    """Nodes that tests share if they don't break them; a test stops only what it has started."""

    net: SwarmNet
    auth: RunningNode
    gateway: RunningNode
    metrics: RunningNode
    worker: RunningNode
    client: ClientNode


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes() -> AsyncIterator[Nodes]:
    async with swarmnet() as net:
        services = [await net.start(service) for service in (Auth, Gateway, Metrics, Worker)]
        yield Nodes(net, *services, await net.client())


async def test_a_client_outside_calls_auth_and_a_gateway_streams_from_a_worker(nodes: Nodes) -> None:
    gateway, worker, caller = nodes.gateway, nodes.worker, nodes.client
    reply = await caller.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials("x", "ada")), credential=Credential("secret"))
    assert reply.user.email == "client secret"
    await sees(gateway, worker)
    async with gateway.node.rpc.stream(inference.process_prompt, prompt("x", 3000)) as answer:
        chunks = [chunk async for chunk in answer]
    assert [chunk.token_ids for chunk in chunks] == [(number,) for number in range(3000)]
    (entry,) = usable(gateway, Role.WORKER)
    assert (entry.path, [route.transport for route in entry.routes]) == ("direct", ["swarm"])
    assert {entry.node for entry in usable(caller, Role.AUTH)} == {nodes.auth.node.id}
    assert not caller.directory.entries(Role.WORKER)
    await until(lambda: gateway.node.node_transports.round_trip_seconds(worker.node.id) is not None)


async def test_clients_never_meet_each_other_and_a_worker_no_client(nodes: Nodes) -> None:
    second = await nodes.net.client()
    for node in (nodes.worker, nodes.client, second):
        await sees(node, nodes.gateway)
    peers = {link.peer.role for node in (nodes.client, second, nodes.worker.node) for link in node.node_transports.links()}
    assert Role.GATEWAY in peers
    assert not peers & {Role.CLIENT, Role.WORKER}


async def test_the_role_table_applies_over_hyperswarm_too(nodes: Nodes) -> None:
    await sees(nodes.client, nodes.auth)
    with pytest.raises(errors.WrongRole):
        await nodes.client.rpc.call(auth.validate_api_key, auth.ValidateApiKey(Credential("k")))


async def test_a_cancellation_reaches_the_worker(nodes: Nodes) -> None:
    await sees(nodes.gateway, nodes.worker)
    async with nodes.gateway.node.rpc.stream(inference.process_prompt, prompt("hang", 1), to=nodes.worker.node.id) as answer:
        await anext(answer)
    assert isinstance(nodes.worker.service, Worker)
    async with asyncio.timeout(60):
        await nodes.worker.service.cancelled.wait()


async def test_metrics_reads_a_worker_that_has_no_port(nodes: Nodes) -> None:
    await sees(nodes.metrics, nodes.worker)
    found = await nodes.metrics.node.rpc.call(node_api.read_metrics, node_api.ReadMetrics(), to=nodes.worker.node.id)
    assert 'ai_platform_links_by_path{path="direct"} ' in found.text
    assert "ai_platform_certificate_seconds_left" in found.text


async def test_a_node_with_an_expired_certificate_is_shown_with_the_reason(nodes: Nodes) -> None:
    worker = await nodes.net.start(Worker, key_file=nodes.net.join("old", Role.WORKER, age_seconds=26 * 3600))
    # The worker only looks for auth, so the gateway never hears of it: the worker is not refused, it is absent.
    assert worker.node.renewal.meetings()[0].look
    assert worker.node.id not in {entry.node for entry in usable(nodes.gateway, Role.WORKER)}
    assert (await failing(worker))["certificate"].startswith("the certificate of this node has expired")
    await worker.stop()


async def failing(node: RunningNode) -> dict[str, str]:
    """Return why a node is not ready; nothing if it is."""
    health = await node.node.health()
    return {} if health.ready else {check.name: check.detail for check in health.checks if not check.ok and check.needed}


async def test_a_worker_that_no_service_has_accepted_is_not_ready(nodes: Nodes) -> None:
    """Its sidecar runs and its model may serve, but nobody can use it."""
    assert await failing(nodes.worker) == {}
    async with swarmnet() as net:
        worker = await net.start(Worker)
        await until(lambda: worker.node.node_transports.listening() == ("swarm",), seconds=30)
        assert await failing(worker) == {"mesh": "no service of the mesh has accepted this worker"}
        gateway = await net.start(Gateway)
        await sees(worker, gateway, seconds=30)
        assert await failing(worker) == {}
        await gateway.stop()
        await until(lambda: not usable(worker, Role.GATEWAY), seconds=30)
        assert await failing(worker) == {}, "what all workers share is missing"


async def test_processes_of_one_profile_call_at_once(nodes: Nodes) -> None:
    profile = nodes.net.join("profile", Role.CLIENT)
    callers = [await nodes.net.client(profile) for _ in range(tiers.volume(8, least=3))]
    asked = auth.LoginUser(auth.Credentials("x", "ada"))
    replies = await asyncio.gather(*(caller.rpc.call(auth.login_user, asked, deadline_seconds=60) for caller in callers))
    assert len(replies) == len(callers)
    auths = {link.peer.node for caller in callers for link in caller.node_transports.links() if link.peer.role is Role.AUTH}
    assert auths == {nodes.auth.node.id}


async def test_a_stopped_node_is_gone_immediately_and_back_within_a_second_of_its_start(nodes: Nodes) -> None:
    gateway, worker = nodes.gateway, await nodes.net.start(Worker)
    await sees(gateway, worker)
    await worker.stop()
    await until(lambda: worker.node.id not in {entry.node for entry in usable(gateway, Role.WORKER)}, seconds=1)
    again = await nodes.net.start(Worker, key_file=worker.key_file)
    with stopwatch.within(3):  # a second on a quiet machine
        await sees(gateway, again, seconds=5)
    await again.stop()


async def test_a_restarted_gateway_finds_existing_workers(nodes: Nodes) -> None:
    gateway = await nodes.net.start(Gateway)
    await sees(gateway, nodes.worker)
    await gateway.cut()
    again = await nodes.net.start(Gateway, key_file=gateway.key_file)
    await sees(again, nodes.worker, seconds=8)
    await again.stop()


async def test_a_revoked_worker_is_disconnected_everywhere_in_mid_stream(nodes: Nodes) -> None:
    gateways = [nodes.gateway, await nodes.net.start(Gateway)]
    worker = await nodes.net.start(Worker)
    for gateway in gateways:
        await sees(gateway, worker)
        await sees(gateway, nodes.auth)
    async with gateways[0].node.rpc.stream(inference.process_prompt, prompt("hang", 1), to=worker.node.id) as answer:
        await anext(answer)
        with stopwatch.within(5):
            nodes.net.revoke(worker.node.id, nodes.auth)
            with pytest.raises(errors.AimeshError) as raised:
                await anext(answer)
            assert raised.value.retryable
            for gateway in gateways:
                shown = gateway.node.directory
                await until(lambda shown=shown: worker.node.id not in {each.node for each in shown.usable(Role.WORKER)}, seconds=5)  # type: ignore[misc]  # mypy: no lambda defaults
    (entry,) = [each for each in gateways[1].node.directory.entries(Role.WORKER) if each.node == worker.node.id]
    assert entry.why_not in ("this node was revoked", "revoked by an administrator")
    for gateway in gateways:
        assert worker.node.id not in {link.peer.node for link in gateway.node.node_transports.links()}
    for each in (worker, gateways[1]):
        await each.stop()


@pytest.mark.nightly("long")
async def test_previous_dht_nodes_lead_to_the_mesh_if_no_current_one_responds(nodes: Nodes) -> None:
    key_file = nodes.net.join("returning", Role.WORKER)
    file = key_file.with_suffix(".mesh")
    kept = membership_file.load(file)
    assert kept is not None
    nobody = tuple(f"127.0.0.1:{port}" for port in dht.free_ports(3))
    membership_file.save(file, msgspec.structs.replace(kept, bootstrap=nobody, older_bootstrap=kept.bootstrap))
    worker = await nodes.net.start(Worker, key_file=key_file, bootstrap=())
    await sees(nodes.gateway, worker, seconds=30)
    await worker.stop()


async def test_the_younger_of_two_processes_with_one_key_stops(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes never hear each other: over Hyperswarm, each one's links replace the other's."""
    monkeypatch.setattr(duplicate_keys, "OVERLAP_SECONDS", 1.0)
    gateway, worker = nodes.gateway, await nodes.net.start(Worker)
    await sees(gateway, worker)
    copy = nodes.net.folder / "copy.nk"
    for suffix in (".nk", ".mesh"):
        copy.with_suffix(suffix).touch(mode=0o600)
        copy.with_suffix(suffix).write_bytes(worker.key_file.with_suffix(suffix).read_bytes())
    with pytest.raises(ExceptionGroup) as ended:
        async with asyncio.timeout(60):
            await live(Worker, nodes.net.settings(copy), asyncio.get_running_loop().create_future(), asyncio.Event())
    assert ended.group_contains(errors.BadSettings, match="another process already runs as this node")
    assert "ai_platform_contested_keys_total 0.0" not in gateway.node.metrics_text()
    # The younger process's shutdown message does not remove the older one.
    await sees(gateway, worker)
    reply = await gateway.node.rpc.call(node_api.read_health, node_api.ReadHealth(), to=worker.node.id)
    assert reply.ready
    assert not worker.node.announcer.must_stop.is_set()
    await worker.stop()


async def test_a_node_on_both_transports_is_one_node_and_fails_over_from_nats_and_back() -> None:
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        gateway, worker = await net.start(Gateway, nats=True), await net.start(Worker, nats=True)
        await sees(gateway, worker)
        await until(lambda: len(usable(gateway, Role.WORKER)[0].routes) == 2, seconds=10)
        assert [entry.path for entry in gateway.node.directory.entries(Role.WORKER)] == ["nats"]
        async with gateway.node.rpc.stream(inference.process_prompt, prompt("x", 1)) as answer:
            assert [chunk.text async for chunk in answer] == ["x"]
        net.server.kill()
        await until(lambda: usable(gateway, Role.WORKER)[0].path == "direct")
        async with gateway.node.rpc.stream(inference.process_prompt, prompt("y", 2)) as answer:
            assert [chunk.text async for chunk in answer] == ["y", "y"]
        net.server.start()
        await until(lambda: usable(gateway, Role.WORKER)[0].path == "nats", seconds=15)
        async with gateway.node.rpc.stream(inference.process_prompt, prompt("z", 1)) as answer:
            assert [chunk.text async for chunk in answer] == ["z"]


async def test_if_the_configured_dht_nodes_are_gone_saved_ones_lead_to_the_mesh() -> None:
    async with swarmnet(own_dht=True) as net, dht.dht(beside=net.bootstrap) as others:
        the_auth, gateway, worker = await net.start(Auth), await net.start(Gateway), await net.start(Worker)
        profile = net.join("profile", Role.CLIENT)
        caller = await net.client(profile)
        await sees(caller, the_auth)
        await sees(gateway, worker)
        kept_by = [profile.with_suffix(".mesh"), worker.key_file.with_suffix(".mesh")]
        kept_nodes = {str(node) for node in others}
        await until(lambda: all((kept := membership_file.load(path)) is not None and kept_nodes & {*kept.nodes} for path in kept_by))
        async with gateway.node.rpc.stream(inference.process_prompt, prompt("hang", 1)) as answer:
            await anext(answer)
            await net.end_dht()
            with stopwatch.within(10):
                again = await net.client(profile)
                asked = auth.LoginUser(auth.Credentials("x", "ada"))
                await again.rpc.call(auth.login_user, asked, deadline_seconds=60)
            # Existing links stay up.
            assert worker.node.id in {link.peer.node for link in gateway.node.node_transports.links()}


@pytest.mark.nightly("long")
async def test_dht_nodes_from_a_renewal_are_used_immediately_and_the_previous_ones_kept() -> None:
    """From the DHT by which it joined, the worker never hears of its new gateway."""
    async with swarmnet(own_dht=True) as net, dht.dht() as others:
        front = (await net.start(FrontDoor)).service
        assert isinstance(front, FrontDoor)
        front.ca, front.bootstrap = net.ca, tuple(str(address) for address in others)
        key_file = net.join("worker", Role.WORKER, age_seconds=23 * 3600)
        front.members[node_keys.load(key_file).id] = Role.WORKER
        worker = await net.start(Worker, key_file=key_file, bootstrap=())
        await until(lambda: worker.node.renewal.membership.bootstrap == front.bootstrap, seconds=20)
        kept = membership_file.load(key_file.with_suffix(".mesh"))
        assert kept is not None
        assert (kept.bootstrap, kept.older_bootstrap) == (front.bootstrap, tuple(str(address) for address in net.bootstrap))
        await net.end_dht()
        gateway = await net.start(Gateway, bootstrap=others)
        await sees(gateway, worker, seconds=30)


async def test_a_restart_with_the_same_key_is_not_a_duplicate_on_either_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links of the killed process may deliver a last announcement after its successor's first one."""
    monkeypatch.setattr(duplicate_keys, "OVERLAP_SECONDS", 1.0)
    async with swarmnet(nats=True) as net:
        gateway, worker = await net.start(Gateway, nats=True), await net.start(Worker, nats=True)
        await sees(gateway, worker)
        stale = worker.node._describe()
        await worker.cut()
        again = await net.start(Worker, key_file=worker.key_file, nats=True)
        started_at = asyncio.get_running_loop().time()
        await sees(gateway, again)
        gateway.node.announcer._apply(stale, "direct", "swarm")
        await until(lambda: asyncio.get_running_loop().time() - started_at > 2 * duplicate_keys.OVERLAP_SECONDS + 2, seconds=30)
        assert "ai_platform_contested_keys_total 0.0" in gateway.node.metrics_text()
        assert not again.node.announcer.must_stop.is_set()
        assert again.node.id in [entry.node for entry in usable(gateway, Role.WORKER)]
