"""Servers that administrators add: gateways on a real PostgreSQL, workers that try and serve them, and servers on loopback."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from features.remote_servers.worker import added_servers, http_server_client
from features.remote_servers.worker.added_servers import AddedServers
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.rules.remote_hosts import RemoteHosts
from services.gateway import servers, store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.rpc_api.config_rpc import ConfigRpc
from services.gateway.servers import Servers
from services.gateway.settings import GatewaySettings
from shared import access_table, config, errors
from shared.api import audit, business, configuration
from shared.api import servers as api
from shared.api.inference import ModelState
from shared.api.method import Nothing
from shared.config_documents import ConfigKind, ServerDocument, ServerKind
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.node_keys import Authority
from shared.identity.trust import Trust
from shared.node import lifecycle
from shared.rpc import RpcCall
from shared.rpc.audit_reporting import AuditReporting
from shared.types import ModelName, NodeId, Peer, Role, UserRole
from tests.services.gateway.fakes import OWNER, FakeRpc, rpc_call
from tests.services.gateway.test_settings import GIVEN
from tests.services.inference import asked
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Reader, Watch, until

CALL = rpc_call(msgspec.structs.replace(OWNER, username="root", role=UserRole.ADMIN))
KEY = "sk-very-secret-0123456789"
MODELS = Answer(['{"data": [{"id": "gpt-x"}, {"id": "gpt-y"}]}'])
CHAT = Answer(['data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'], hang=True)
OLLAMA = Answer(['{"models": [{"name": "qwen3:latest"}, {"name": "llama3.2:1b"}]}'])


@dataclass
class Mesh:
    """Gateways and workers that call each other without a network."""

    ca: Authority = field(default_factory=lambda: Authority(node_keys.new_authority_seed()))
    gateways: dict[NodeId, "Gateway"] = field(default_factory=dict)
    workers: dict[NodeId, "Worker"] = field(default_factory=dict)
    acts: list[audit.AuditedAct] = field(default_factory=list)


@dataclass
class Gateway:
    live: LiveConfiguration
    servers: Servers
    rpc: ConfigRpc
    tables: ConfigStore

    async def add(self, name: str, url: str, *, only_new: bool = True, **more: Any) -> configuration.AppliedConfig:
        body = msgspec.json.encode(ServerDocument(url=url, **more)).decode()
        return await self.apply(name, body, only_new=only_new)

    async def apply(self, name: str, body: str | None, **more: Any) -> configuration.AppliedConfig:
        document = configuration.ConfigDocument(ConfigKind.SERVER, name, body)
        return await self.rpc.apply(configuration.ApplyConfig(documents=(document,), **more), CALL)

    async def rows(self) -> dict[str, api.ServerRow]:
        return {row.name: row for row in (await self.servers.list_rows(api.ListServers(), CALL)).servers}


@dataclass
class Worker:
    backend: RemoteBackend
    added: AddedServers

    def served(self) -> list[str]:
        return [status.model_id for status in self.backend.models() if status.state is ModelState.READY]


class MeshRpc(FakeRpc):
    """Leads calls between gateways and workers to the other end."""

    def __init__(self, mesh: Mesh, me: NodeId) -> None:
        super().__init__()
        self._mesh = mesh
        self._me = me

    async def call(self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float = 10, **more: Any) -> Any:
        request = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=method.request)
        if method is api.try_server and to is not None:
            return await self._mesh.workers[to].added.try_server(request, CALL)
        if method is api.take_servers and to is not None:
            call = RpcCall(Peer(Role.WORKER, self._me), deadline=0, credential=None, idempotency_key=None)
            return await self._mesh.gateways[to].servers.take(request, call)
        return await super().call(method, request, to=to, deadline_seconds=deadline_seconds, **more)


@asynccontextmanager
async def gateway(mesh: Mesh, postgres_url: str, **variables: str) -> AsyncIterator[Gateway]:
    settings, trust = config.load(GatewaySettings, GIVEN | variables), _trust(mesh, Role.GATEWAY)

    async def record(request: audit.RecordActs) -> Nothing:
        mesh.acts.extend(request.acts)
        return Nothing()

    async def names(_request: business.NameUsers) -> business.UserNames:
        return business.UserNames({})

    rpc = MeshRpc(mesh, trust.me.id)
    rpc.answers |= {audit.record_acts.name: record, business.name_users.name: names}
    async with store.opened(postgres_url) as database, lifecycle.background() as tasks:
        tables = ConfigStore(database)
        live = LiveConfiguration(tables, poll_seconds=0.05)
        await live.start(settings)
        tasks.create_task(live.watch())
        found = Servers(live, rpc, trust, settings.prompt_hash_secret)
        reporting = AuditReporting(rpc)
        one = Gateway(live, found, ConfigRpc(live, tables, settings, rpc, reporting, found, served=list, gateways=list), tables)
        mesh.gateways[trust.me.id] = one
        yield one
        await reporting.send()
        del mesh.gateways[trust.me.id]


@asynccontextmanager
async def worker(mesh: Mesh, *hosts: str, owner: str = "", stranger: bool = False) -> AsyncIterator[Worker]:
    trust = _trust(Mesh() if stranger else mesh, Role.WORKER, owner)
    backend = RemoteBackend("openai", ())
    directory = SimpleNamespace(usable=lambda role: [SimpleNamespace(node=node) for node in mesh.gateways] if role is Role.GATEWAY else [])
    node: Any = SimpleNamespace(trust=trust, rpc=MeshRpc(mesh, trust.me.id), directory=directory)
    one = Worker(backend, AddedServers(node, backend, RemoteHosts(hosts), 4, 32, Watch()))
    mesh.workers[trust.me.id] = one
    running = asyncio.create_task(one.added.run())
    yield one
    running.cancel()
    await asyncio.wait([running])
    del mesh.workers[trust.me.id]


def _trust(mesh: Mesh, role: Role, owner: str = "") -> Trust:
    trust = Trust(node_keys.NodeKey(node_keys.new_seed()), role, (mesh.ca.id,))
    trust.certificate = certificates.issue(mesh.ca, Subject(trust.me.id, role, owner), time.time())
    return trust


@pytest.fixture
async def mesh() -> Mesh:
    return Mesh()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(added_servers, "ASK_SECONDS", 0.02)
    monkeypatch.setattr(http_server_client, "BACKOFF_SECONDS", 0.001)


@asynccontextmanager
async def started(mesh: Mesh, postgres_url: str, *hosts: str, **variables: str) -> AsyncIterator[tuple[Gateway, Worker]]:
    """A gateway, and a worker that has asked it."""
    async with gateway(mesh, postgres_url, **variables) as one, worker(mesh, *(hosts or ("127.0.0.1",))) as taker:
        await until(lambda: one.servers.workers)
        yield one, taker


def openai(**more: Any) -> dict[str, Any]:
    return {"/v1/models": MODELS, "/v1/chat/completions": CHAT, **more}


async def test_a_server_is_tried_stored_and_served_by_all_workers(mesh: Mesh, postgres_url: str) -> None:
    async with serving(openai()) as server, started(mesh, postgres_url) as (one, first), worker(mesh, "127.0.0.1") as second:
        applied = await one.add("rack", f"{server.url}/v1", kind=ServerKind.VLLM, key=KEY)
        assert [(change.kind, change.name, change.version) for change in applied.changes] == [(ConfigKind.SERVER, "rack", 1)]
        assert [warning.partition(":")[0] for warning in applied.warnings] == [f"server {applied.changes[0].name}"], "of releases"
        assert all(f"authorization: bearer {KEY}" in head for head in server.headers)
        await until(lambda: first.served() == second.served() == ["gpt-x", "gpt-y"])
        await until(lambda: [state.models for _, states in one.servers.workers.values() for state in states].count(("gpt-x", "gpt-y")) == 2)
        assert (await one.rows())["rack"] == api.ServerRow(
            "rack", f"{server.url}/v1", ServerKind.VLLM, True, (ModelName("gpt-x"), ModelName("gpt-y")), 2, ""
        )


async def test_ollama_speaks_its_own_api_and_only_some_models_are_served(mesh: Mesh, postgres_url: str) -> None:
    async with serving({"/api/tags": OLLAMA}) as server, started(mesh, postgres_url) as (one, taker):
        await one.add("attic", server.url, kind=ServerKind.OLLAMA, models=("qwen3",))
        await until(lambda: taker.served() == ["qwen3"])
        with pytest.raises(errors.BadRequest, match="server cellar doesn't list gpt-x") as refused:
            await one.add("cellar", server.url, kind=ServerKind.OLLAMA, models=("qwen3", "gpt-x"))
        assert refused.value.hint.startswith("it lists ")
        with pytest.raises(errors.BadRequest, match="does not know this path") as refused:
            await one.add("cellar", f"{server.url}/v1", kind=ServerKind.OLLAMA)
        assert refused.value.hint == "check the URL of server cellar: is it Ollama's, without a path?"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (Answer(["{}"], status=401), "refuses this worker's key"),
        (Answer(["{}"], status=404), "does not know this path"),
        (Answer([""], status=302, headers={"location": "http://127.0.0.1:1/v1/models"}), "redirects to another address"),
        (Answer(["<html>"], headers={"content-type": "text/html"}), "is this the address of its API"),
        (Answer(["x" * 65536], endless=True), "more than 2097152 bytes"),
        (Answer([""], hang=True), "did not list its models within"),
        (Answer([], silent=True), "does not answer"),
        (Answer(['{"data": []}']), "lists no models"),
    ],
)
async def test_what_is_wrong_with_a_server_is_said_at_once(
    mesh: Mesh, postgres_url: str, monkeypatch: pytest.MonkeyPatch, answers: Answer, why: str
) -> None:
    monkeypatch.setattr(added_servers, "TRY_SECONDS", 0.3 if answers.hang else 20.0)
    async with serving({"/v1/models": answers}) as server, started(mesh, postgres_url) as (one, taker):
        with pytest.raises(errors.BadRequest, match=why):
            await one.add("rack", f"{server.url}/v1", key=KEY)
        await _nothing_is_stored(one, taker)


@pytest.mark.parametrize(
    ("url", "hosts", "why"),
    [
        ("http://127.0.0.1:8000/v1", ("api.openai.com",), "doesn't have the host 127.0.0.1"),
        ("http://10.1.2.3/v1", ("10.1.2.4", "127.0.0.1"), "doesn't have the host 10.1.2.3"),
        ("http://127.0.0.1:8000/v1", ("127.*",), "is private"),
        ("http://169.254.169.254/v1", ("169.254.169.254",), "never allowed"),
        ("http://169.254.169.254/v1", ("10.0.0.5",), "never allowed"),
        ("http://[::ffff:169.254.169.254]/v1", ("*",), "never allowed"),
        ("http://[fd00:ec2::254]/v1", ("*",), "never allowed"),
        ("ftp://127.0.0.1/v1", ("127.0.0.1",), "must be http"),
        ("http://me:word@127.0.0.1/v1", ("127.0.0.1",), "contains a password"),
    ],
)
async def test_an_address_that_is_not_allowed_is_said_at_once(
    mesh: Mesh, postgres_url: str, url: str, hosts: tuple[str, ...], why: str
) -> None:
    async with started(mesh, postgres_url, *hosts) as (one, taker):
        with pytest.raises(errors.CallerError, match=why):
            await one.add("rack", url, key=KEY)
        await _nothing_is_stored(one, taker)


async def _nothing_is_stored(one: Gateway, taker: Worker) -> None:
    assert await one.rows() == {}
    assert await one.tables.versions(ConfigKind.SERVER, None, limit=10) == []
    assert taker.backend.servers == []


async def test_a_name_that_leads_to_a_private_address_is_refused_at_each_connection(
    mesh: Mesh, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to, before = {"vllm.example.org": "127.0.0.1"}, socket.getaddrinfo

    def resolve(host: Any, *args: Any, **more: Any) -> Any:
        return before(leads_to.get(host, host), *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with serving(openai()) as server, started(mesh, postgres_url, "*.example.org") as (one, taker):
        url = server.url.replace("127.0.0.1", "vllm.example.org") + "/v1"
        with pytest.raises(errors.BadRequest, match="is private"):
            await one.add("rack", url)
        assert server.connections == 0
        # The name is trusted where the setting has it; not the address that it leads to later.
        taker.added.hosts = RemoteHosts(("vllm.example.org",))
        await one.add("rack", url)
        await until(lambda: taker.served() == ["gpt-x", "gpt-y"])
        leads_to["vllm.example.org"] = "169.254.169.254"
        connection = taker.backend.servers[0].server.session
        connection.connector.clear_dns_cache()  # type: ignore[union-attr]
        assert connection.connector is not None
        known = server.connections
        with pytest.raises(errors.Unavailable, match="never allowed"):
            await taker.backend.servers[0].server.get("models", bytes)
        assert server.connections == known


async def test_without_a_worker_the_setting_is_named(mesh: Mesh, postgres_url: str) -> None:
    async with gateway(mesh, postgres_url) as one:
        with pytest.raises(errors.Unavailable) as refused:
            await one.add("rack", "http://127.0.0.1/v1")
        assert "REMOTE_MODEL_HOSTS" in refused.value.hint
        assert await one.rows() == {}


@pytest.mark.parametrize("given", [{"owner": str(OWNER.user_id)}, {"stranger": True}])
async def test_only_the_operators_workers_get_servers(mesh: Mesh, postgres_url: str, given: dict[str, Any]) -> None:
    async with serving(openai()) as server, started(mesh, postgres_url) as (one, taker), worker(mesh, "127.0.0.1", **given) as other:
        await one.add("rack", f"{server.url}/v1", key=KEY)
        await until(lambda: taker.served() and other.added._refusal)
        assert (other.backend.servers, len(one.servers.workers)) == ([], 1)
        # A certificate of another worker doesn't help.
        other.added.node.trust.certificate = taker.added.node.trust.certificate
        with pytest.raises(errors.NotAllowed, match="only the operator's workers"):
            request = api.TakeServers(taker.added.node.trust.certificate, -1)
            await one.servers.take(request, RpcCall(Peer(Role.WORKER, NodeId("x")), deadline=0, credential=None, idempotency_key=None))


def test_only_administrators_change_servers() -> None:
    for method in ("gateway.applyConfig", "gateway.rollbackConfig", "gateway.listServers"):
        developer = msgspec.structs.replace(OWNER, role=UserRole.DEVELOPER)
        assert not any(access_table.may(developer, needed) for needed in access_table.METHODS[method].needs)
    assert api.take_servers.callers == {Role.WORKER}
    assert api.try_server.callers == {Role.GATEWAY}


async def test_a_taken_name_needs_replace_and_its_key_stays_for_the_same_url(mesh: Mesh, postgres_url: str) -> None:
    other_key = "sk-another-secret"
    async with serving(openai()) as server, serving(openai()) as elsewhere, started(mesh, postgres_url) as (one, taker):
        await one.add("rack", f"{server.url}/v1", key=KEY)
        with pytest.raises(errors.AlreadyExists, match="there is a server 'rack' already"):
            await one.add("rack", f"{elsewhere.url}/v1", key=other_key)
        await one.add("rack", f"{server.url}/v1", models=("gpt-y",), only_new=False)
        await until(lambda: taker.served() == ["gpt-y"])
        assert all(f"bearer {KEY}" in head for head in server.headers), "also after the change"
        await one.add("rack", f"{server.url}/v1", key=other_key, only_new=False)
        await until(lambda: f"bearer {other_key}" in server.headers[-1])
        elsewhere.headers.clear()
        await one.add("rack", f"{elsewhere.url}/v1", only_new=False)
        await until(lambda: taker.served() == ["gpt-x", "gpt-y"])
        assert not any("authorization" in head for head in elsewhere.headers), "a key is only for its URL"
        # What the history has can't be sent elsewhere either.
        stored = one.live.documents[ConfigKind.SERVER, "rack"]
        versions = await one.tables.versions(ConfigKind.SERVER, "rack", 1, limit=1)
        sealed = json.loads(versions[0].body or "")["sealed_key"]
        assert isinstance(stored.body, ServerDocument)
        with pytest.raises(errors.BadRequest, match="encrypted for another name, URL"):
            await one.apply("rack", json.dumps({"url": f"{elsewhere.url}/v1", "sealed_key": sealed}))
        await one.rpc.roll_back(configuration.RollbackConfig(ConfigKind.SERVER, "rack", 1), CALL)
        await until(lambda: f"bearer {KEY}" in server.headers[-1])


async def test_a_removed_server_finishes_its_answers(mesh: Mesh, postgres_url: str) -> None:
    def chat(_: Any) -> Answer:
        return CHAT

    async with serving(openai(**{"/v1/chat/completions": chat})) as server, started(mesh, postgres_url) as (one, taker):
        await one.add("rack", f"{server.url}/v1")
        await until(taker.served)
        reader = Reader()
        answer = asyncio.create_task(taker.backend.generate(asked.job("hi", model="gpt-x"), reader))
        await until(lambda: reader.text == "Hel")
        removed = taker.backend.servers[0].server
        await one.apply("rack", None)
        await until(lambda: not taker.backend.servers)
        assert taker.served() == []
        with pytest.raises(errors.UnknownModel, match="was removed"):
            await taker.backend.generate(asked.job("hi", model="gpt-x"), Reader())
        await asyncio.sleep(0.05)
        assert not answer.done()
        assert not removed.session.closed
        _finish(server)
        with pytest.raises(errors.Unavailable):
            # This server only ever hangs; it closes the connection at last.
            await answer
        await until(lambda: removed.session.closed)
        assert await one.rows() == {}


def _finish(server: FakeServer) -> None:
    for task in tuple(server.serving):
        task.cancel()


async def test_two_gateways_and_one_that_restarts(mesh: Mesh, postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(openai()))
        one = await stack.enter_async_context(gateway(mesh, postgres_url))
        taker = await stack.enter_async_context(worker(mesh, "127.0.0.1"))
        await until(lambda: one.servers.workers)
        async with gateway(mesh, postgres_url) as two:
            await one.add("rack", f"{server.url}/v1", key=KEY)
            await until(taker.served)
            await until(lambda: two.servers.workers)
            assert (await two.rows())["rack"].has_key
            await two.add("shelf", f"{server.url}/v1", models=("gpt-x",))
            await until(lambda: {one.server.source.name for one in taker.backend.servers} == {"server rack", "server shelf"})
        async with gateway(mesh, postgres_url) as three:
            await until(lambda: three.servers.workers)
            kept = list(taker.backend.servers)
            await three.apply("shelf", None)
            await until(lambda: len(taker.backend.servers) == 1)
            assert taker.backend.servers == kept[:1], "the other one keeps its connections"


async def test_a_worker_keeps_its_servers_while_no_gateway_knows_them(mesh: Mesh, postgres_url: str) -> None:
    async with serving(openai()) as server, started(mesh, postgres_url) as (one, taker):
        await one.add("rack", f"{server.url}/v1")
        await until(taker.served)

        async def unknown(*_: Any, **__: Any) -> Any:
            raise errors.UnknownMethod("there is no method gateway.takeServers")

        taker.added.node.rpc.call = unknown  # type: ignore[method-assign]
        await until(lambda: taker.added._refusal)
        assert taker.served() == ["gpt-x", "gpt-y"]


async def test_an_unreadable_key_is_told_and_the_others_are_served(mesh: Mesh, postgres_url: str) -> None:
    async with serving(openai()) as server:
        async with started(mesh, postgres_url) as (one, _):
            await one.add("rack", f"{server.url}/v1", key=KEY)
            await one.add("shelf", f"{server.url}/v1", models=("gpt-x",))
        async with started(mesh, postgres_url, PROMPT_HASH_SECRET="t" * 16) as (one, taker):
            await until(lambda: taker.served() == ["gpt-x"])
            rows = await one.rows()
            assert "PROMPT_HASH_SECRET" in rows["rack"].trouble


async def test_the_key_is_nowhere_but_at_its_server(
    mesh: Mesh, postgres_url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echoing = Answer([json.dumps({"error": f"bad key {KEY}"})], status=500)
    async with serving({"/v1/models": echoing}) as server, serving(openai()) as good, started(mesh, postgres_url) as (one, taker):
        with pytest.raises(errors.BadRequest) as refused:
            await one.add("rack", f"{server.url}/v1", key=KEY)
        applied = await one.add("rack", f"{good.url}/v1", key=KEY)
        with pytest.raises(errors.BadRequest) as mistake:
            await one.apply("Bad Name", json.dumps({"url": "http://x", "key": KEY, "models": [KEY * 20]}))
        await until(taker.served)
        exported = await one.rpc.export(configuration.ExportConfig(), CALL)
        history = await one.rpc.list_versions(configuration.ListConfigVersions(bodies=True, limit=10), CALL)
        rows = await one.rows()
        body = one.live.documents[ConfigKind.SERVER, "rack"].body
    shown = capfd.readouterr()
    everything = [
        str(refused.value),
        str(mistake.value),
        repr(applied),
        repr(exported),
        repr(history),
        repr(rows),
        repr(body),
        repr(mesh.acts),
    ]
    assert mesh.acts
    for text in (*everything, shown.out, shown.err, caplog.text):
        assert KEY not in text
    assert "sealed_key" in exported.text


async def test_a_server_outside_needs_a_policy_for_its_provider(mesh: Mesh, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def provider(upstream: Any) -> str:
        return str(upstream.name)

    monkeypatch.setattr(added_servers.remote_models, "find_provider", provider)
    async with serving(openai()) as server, started(mesh, postgres_url) as (one, _):
        applied = await one.add("cloud", f"{server.url}/v1")
        assert applied.warnings[0] == "server cloud: add cloud to `external` of the policies mesh and default"
        both = "{external: [cloud]}"
        await one.rpc.apply(configuration.ApplyConfig(f"policies: {{mesh: {both}, default: {both}}}"), CALL)
        assert (await one.add("cloud", f"{server.url}/v1", models=("gpt-x",), only_new=False)).warnings == ()


async def test_a_local_server_that_forwards_models_needs_a_policy_for_them(mesh: Mesh, postgres_url: str) -> None:
    tags = [{"name": "qwen3:8b"}, {"name": "big:latest", "remote_model": "big", "remote_host": "https://ollama.com:443"}]
    async with serving({"/api/tags": Answer([json.dumps({"models": tags})])}) as server, started(mesh, postgres_url) as (one, taker):
        applied = await one.add("attic", server.url, kind=ServerKind.OLLAMA)
        why = "server attic: for the models that it forwards, add ollama-com to `external` of the policies mesh and default"
        assert why in applied.warnings
        await until(lambda: taker.served() == ["qwen3:8b", "big"])
        assert [status.provider for status in taker.backend.models()] == ["", "ollama-com"]
        assert (await one.add("attic", server.url, kind=ServerKind.OLLAMA, models=("qwen3:8b",), only_new=False)).warnings == ()


async def test_a_server_in_a_file_is_tried_and_sealed_like_any_other(mesh: Mesh, postgres_url: str) -> None:
    async with serving(openai()) as server, started(mesh, postgres_url) as (one, taker):
        text = f"servers: {{rack: {{url: '{server.url}/v1', kind: vllm, key: {KEY}}}}}"
        await one.rpc.apply(configuration.ApplyConfig(text), CALL)
        await until(taker.served)
        exported = await one.rpc.export(configuration.ExportConfig(), CALL)
        assert KEY not in exported.text
        again = await one.rpc.apply(configuration.ApplyConfig(exported.text), CALL)
        assert again.changes == (), "an export can be applied again"
        with pytest.raises(errors.BadRequest, match="does not answer"):
            await one.rpc.apply(configuration.ApplyConfig("servers: {rack: {url: 'http://127.0.0.1:1/v1'}}"), CALL)
        with pytest.raises(errors.BadRequest, match="use 1 to 32 lowercase letters"):
            await one.rpc.apply(configuration.ApplyConfig("servers: {Rack: {url: 'http://127.0.0.1:1/v1'}}"), CALL)


async def test_workers_that_are_gone_are_forgotten(mesh: Mesh, postgres_url: str) -> None:
    now = [0.0]
    async with gateway(mesh, postgres_url) as one:
        object.__setattr__(one.servers, "clock", lambda: now[0])
        async with worker(mesh, "127.0.0.1"):
            await until(lambda: one.servers.workers)
        now[0] += servers._GONE_SECONDS
        with pytest.raises(errors.Unavailable, match="no worker takes servers"):
            await one.add("rack", "http://127.0.0.1/v1")
        async with worker(mesh, "127.0.0.1") as taker:
            await until(lambda: list(one.servers.workers) == [taker.added.node.trust.me.id])
