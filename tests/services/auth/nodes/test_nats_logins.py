"""Nodes log in to a real NATS server, which asks a real auth."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from services.auth.nodes import login_limits, nats_logins
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, membership
from shared.api.method import Method, Reply, Request
from shared.identity import certificates, login_tokens, node_keys, tickets
from shared.identity.certificates import Subject
from shared.identity.trust import Trust
from shared.node import Node, enrollment, membership_file
from shared.node.client_node import ClientNode, ClientSettings, client
from shared.node.enrollment import EnrollingNode
from shared.node.lifecycle import background
from shared.node.member import Service, member
from shared.node.settings import NodeSettings
from shared.protocol.directory import ConfigReading
from shared.stores.database import Database
from shared.transports import nats_link
from shared.transports.nats.nats_client import NatsClient
from shared.types import Credential, NodeId, Peer, Role
from stack import secret_files, stack_home
from stack.servers import nats_server, replica_tickets
from stack.stack_home import StackHome
from tests.servers import PostgresServer, ValkeyServer
from tests.services.auth import by_hand
from tests.services.auth.surroundings import ADMIN_PASSWORD, settings_of
from tests.shared.transports.nats.real_servers import cluster
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, IdleService, NatsServer, RunningNode, start_node, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Mesh:
    """The NATS server and auth of one stack, and the nodes that a test starts."""

    home: StackHome
    server: NatsServer
    settings: AuthSettings
    tasks: asyncio.TaskGroup
    #: Holds the nodes' keys and tickets.
    folder: Path
    running: list[RunningNode] = field(default_factory=list)
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def start(self, service: type[Service], settings: NodeSettings) -> RunningNode:
        node = await start_node(self.tasks, service, settings)
        self.running.append(node)
        return node

    async def start_auth(self) -> RunningNode:
        return await self.start(AuthService, self.settings)

    def plan(self, name: str, ticket: str | None = None) -> NodeSettings:
        """Return the settings of a node with its own key, which is not enrolled."""
        key, file = self.folder / f"{name}.nk", self.folder / f"{name}.ticket"
        for path, text in ((key, node_keys.new_seed()), (file, (ticket or "").encode())):
            if text and (path == file or not path.exists()):
                path.touch(mode=0o600)
                path.write_bytes(text)
        return NodeSettings(mesh=MESH, nats_url=self.server.url, node_key_file=key, join_ticket_file=file if ticket else None)

    async def join(self, name: str) -> RunningNode:
        return await self.start(IdleService, self.plan(name, await self.ticket()))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[ClientNode, Credential]]:
        """The operator's client, logged in as the administrator."""
        settings = ClientSettings(mesh=MESH, nats_url=self.server.url, node_key_file=self.home.key("client"))
        async with client(settings) as node:
            login = await node.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(ADMIN_PASSWORD, username="admin")))
            assert isinstance(login, auth.LoginSession)
            yield node, login.access_token

    async def ticket(self, role: Role = Role.WORKER, **changed: Any) -> str:
        return (await self.administer(membership.create_ticket, membership.CreateTicket(role, **changed))).ticket

    async def administer(self, method: Method[Request, Reply], request: Request) -> Reply:
        async with self.client() as (node, credential):
            return await node.rpc.call(method, request, credential=credential)

    async def refused(self) -> list[membership.LoginRefusal]:
        found = await self.administer(membership.list_login_refusals, membership.ListLoginRefusals())
        return [each for each in found.refusals if each.at >= self.since]

    async def refusals(self) -> list[str]:
        return [each.reason for each in await self.refused()]

    async def revoke(self, node: NodeId) -> None:
        await self.administer(membership.revoke_member, membership.RevokeMember(node))

    async def stop(self) -> None:
        """Stop all nodes, auth last. A node that was cut off takes seconds to stop."""
        left = [node for node in self.running if not node._task.done()]
        for is_auth in (False, True):
            await asyncio.gather(*(node.stop() for node in left if isinstance(node.service, AuthService) is is_auth))


def home_in(folder: Path) -> StackHome:
    found = stack_home.locate({"AIMESH_HOME": str(folder / "home")})
    stack_home.ensure_folders(found)
    secret_files.ensure(found)
    return found


@contextmanager
def server_of(home: StackHome) -> Iterator[NatsServer]:
    found = NatsServer(home.nats)
    nats_server.ensure(home, MESH, found.port, "callout", found.web_port)
    found.start()
    yield found
    found.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer, valkey: ValkeyServer) -> AsyncIterator[Mesh]:
    """A server and its auth, for all tests that only start more nodes."""
    valkey.ensure_running()
    database, home = await postgres.new_database("auth"), home_in(tmp_path_factory.mktemp("shared"))
    with server_of(home) as server:
        async with running_mesh(home, server, settings_of(postgres.url(database), valkey.url)) as found:
            await found.start_auth()
            yield found
    postgres.discard(database)


@pytest.fixture
def auth_node(shared: Mesh) -> Node:
    return shared.running[0].node


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(shared: Mesh, tmp_path: Path) -> AsyncIterator[Mesh]:
    """The shared server and auth, and the nodes of this test."""
    async with background() as tasks:
        found = replace(shared, tasks=tasks, folder=tmp_path, running=[], since=datetime.now(UTC))
        yield found
        await found.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def own_mesh(tmp_path: Path, settings: AuthSettings) -> AsyncIterator[Mesh]:
    """A server without auth, for a test that disturbs it."""
    home = home_in(tmp_path)
    with server_of(home) as server:
        async with running_mesh(home, server, settings) as found:
            yield found


@asynccontextmanager
async def running_mesh(home: StackHome, server: NatsServer, settings: AuthSettings) -> AsyncIterator[Mesh]:
    chosen = msgspec.structs.replace(
        settings,
        mesh=MESH,
        nats_url=server.url,
        node_key_file=home.key("auth"),
        mesh_ca_key_file=home.secrets / "mesh_ca.nk",
        nats_issuer_key_file=home.secrets / "nats_issuer.nk",
        nats_callout_key_file=home.secrets / "nats_callout.nk",
        nats_sys_key_file=home.secrets / "nats_sys.nk",
        enrollment_list=home.enrollment,
    )
    async with background() as tasks:
        found = Mesh(home, server, chosen, tasks, home.root)
        yield found
        await found.stop()


def is_connected(node: RunningNode) -> bool:
    nats = node.node.node_transports.nats
    return nats is not None and nats.connected


def nats_of(node: RunningNode) -> NatsClient:
    assert node.node.node_transports.nats is not None
    return node.node.node_transports.nats.nats


async def test_a_ticket_is_enough_to_join_over_nats(mesh: Mesh, auth_node: Node) -> None:
    users = (mesh.home.nats / "users.conf").read_bytes()
    worker = await mesh.join("one")
    await until(lambda: worker.node.directory.usable(Role.AUTH) and auth_node.directory.find(worker.node.id))
    standing = worker.node.trust.standing()
    assert standing is not None
    assert (standing.role, standing.node) == (Role.WORKER, worker.node.id)
    assert (mesh.home.nats / "users.conf").read_bytes() == users
    # The node starts again with its certificate, without the ticket.
    await worker.stop()
    again = await mesh.start(IdleService, mesh.plan("one"))
    assert is_connected(again)
    assert again.node.renewal.membership.accept_models, "as the ticket says"


def over_web(mesh: Mesh, ticket: str) -> tickets.Ticket:
    """Return the ticket as a mesh makes it that is reached by HTTPS, with a DHT beside it that nobody reaches."""
    return msgspec.structs.replace(tickets.parse(ticket), nats=(mesh.server.web_url,), bootstrap=("127.0.0.1:9",), beside=True)


async def test_a_client_joins_and_calls_over_a_websocket(mesh: Mesh) -> None:
    ticket, plan = over_web(mesh, await mesh.ticket(Role.CLIENT)), mesh.plan("cafe")
    joined = await enrollment.enroll(ticket, node_keys.load(plan.node_key_file), EnrollingNode(Role.CLIENT), lambda text: None)
    membership_file.save(plan.state_file, membership_file.by_ticket(membership_file.of(joined), ticket))
    settings = ClientSettings(mesh=MESH, nats_url=None, node_key_file=plan.node_key_file, mesh_file=plan.state_file)
    # Several commands of one profile may run at once.
    async with client(settings) as one, client(settings) as two:
        for node in (one, two):
            assert node.node_transports.is_over_web
            renewed = await node.rpc.call(membership.renew_certificate, membership.RenewCertificate())
            assert renewed.role is Role.CLIENT


@pytest.mark.parametrize("kind", ["used ticket", "revoked node"])
async def test_a_refused_login_ends_soon_though_hyperswarm_is_tried_beside_it(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(enrollment, "_REFUSED_SECONDS", 0.2)
    ticket, one, two = over_web(mesh, await mesh.ticket()), mesh.plan("one"), mesh.plan("two")
    newcomer, key = EnrollingNode(Role.WORKER), node_keys.load(one.node_key_file)
    kept = membership_file.by_ticket(membership_file.of(await enrollment.enroll(ticket, key, newcomer, lambda text: None)), ticket)
    async with asyncio.timeout(HANG_SECONDS):
        with pytest.raises(errors.Unavailable, match="refused this node's key") as refused:
            if kind == "used ticket":
                await enrollment.enroll(ticket, node_keys.load(two.node_key_file), newcomer, lambda text: None)
            else:
                await mesh.revoke(key.id)
                await enrollment.renew_as_newcomer(kept, key)
    assert "aicli admin nodes refusals" in refused.value.hint


async def test_any_of_three_auths_lets_machines_in_over_a_websocket(own_mesh: Mesh) -> None:
    keys = own_mesh.home.key("auth"), *(nats_server.add_node(own_mesh.home, MESH, f"auth {number}", Role.AUTH) for number in range(2))
    auths = [await own_mesh.start(AuthService, msgspec.structs.replace(own_mesh.settings, node_key_file=key)) for key in keys]
    ticket = over_web(own_mesh, await own_mesh.ticket(uses=len(auths)))
    while auths:
        key = node_keys.load(own_mesh.plan(f"box {len(auths)}").node_key_file)
        joined = await enrollment.enroll(ticket, key, EnrollingNode(Role.WORKER), lambda text: None)
        assert joined.role is Role.WORKER
        await auths.pop().stop()


async def test_a_ticket_for_another_role_is_refused_with_the_next_step(mesh: Mesh) -> None:
    with pytest.raises(errors.BadTicket, match="is for a web, not a worker") as refused:
        async with member(mesh.plan("one", await mesh.ticket(Role.WEB)), Role.WORKER):
            pass
    assert "aicli admin tickets create --role worker" in refused.value.hint


async def test_a_used_up_ticket_and_a_foreign_key_are_refused_and_listed(mesh: Mesh) -> None:
    ticket = await mesh.ticket()
    await mesh.start(IdleService, mesh.plan("one", ticket))
    urls = mesh.server.url, mesh.server.web_url
    for name, given, url in (("two", ticket, urls[0]), ("three", None, urls[0]), ("four", ticket, urls[1])):
        key = node_keys.load(mesh.plan(name).node_key_file)
        token = nats_token(given, key)
        with pytest.raises(errors.Unavailable, match="refused this node's key") as refused:
            await NatsClient(url, key, name=name, token=token).connect(deadline_seconds=0.5)
        assert "aicli admin nodes refusals" in refused.value.hint
    listed = await mesh.refused()
    # Of who comes by HTTPS, the server knows only the proxy's address.
    assert {each.address for each in listed if "used up" in each.reason} == {"127.0.0.1", "HTTPS"}
    assert {each.address for each in listed if "not enrolled" in each.reason} == {"127.0.0.1"}


def nats_token(ticket: str | None, key: node_keys.NodeKey) -> Callable[[str], str]:
    if ticket is None:
        return login_tokens.without
    found = tickets.parse(ticket)
    return lambda nonce: login_tokens.of_ticket(found.id, found.key.sign, key.id, nonce)


async def test_a_revoked_node_is_cut_off_within_a_second_and_stays_out(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, other = await mesh.join("one"), await mesh.join("two")
    nats = worker.node.node_transports.nats
    assert nats is not None
    # A hostile node ignores what its peers say.
    monkeypatch.setattr(nats.trust, "was_revoked", False)
    lost = asyncio.Event()
    nats.nats.on_connection = lambda up: None if up else lost.set()
    await mesh.revoke(worker.node.id)
    async with asyncio.timeout(1):
        await lost.wait()
    await until(lambda: "refused this node's key" in str(nats.nats.trouble))
    assert "this node was revoked" in await mesh.refusals()
    assert is_connected(other)


class IdleGateway(IdleService):
    role = Role.GATEWAY


async def test_a_gateway_that_cannot_read_the_configuration_is_cut_off_and_stays_out(
    own_mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when no gateway runs that knows the configuration, and after a restart of auth."""
    first = await own_mesh.start_auth()
    tickets = [await own_mesh.ticket(Role.GATEWAY) for _ in range(2)]
    new = await own_mesh.start(IdleGateway, own_mesh.plan("new", tickets[0]))
    new.node.announce_config(ConfigReading("0.4.0", "0.3.0", 1))
    # Release 0.3 names no release when it logs in, and announces its version.
    with monkeypatch.context() as patch:
        patch.setattr(nats_link.config_releases, "READS", "0.3.0")
        old = await own_mesh.start(IdleGateway, own_mesh.plan("old", tickets[1]))
    old.node._config = None
    old.node.announcer.announce_soon()
    await until(lambda: [entry.announcement.config is None for entry in first.node.directory.usable(Role.GATEWAY)].count(True) == 1)
    changes: list[auth.Change] = []

    async def follow() -> None:
        with suppress(errors.AimeshError):
            async with old.node.rpc.stream(auth.watch_changes, auth.WatchChanges(), deadline_seconds=HANG_SECONDS) as stream:
                async for change in stream:
                    changes.append(change)  # noqa: PERF401 - the loop ends with an error

    following = asyncio.create_task(follow())
    await until(lambda: changes)
    new.node.announce_config(ConfigReading("0.4.0", "0.4.0", 2))
    await until(lambda: not is_connected(old))
    await following
    assert len(changes) > 1, "it has forgotten who its callers are"
    assert changes[-1].user_id is None
    assert is_connected(new)
    await until(lambda: "refused this node's key" in str(nats_of(old).trouble))
    assert "gateways of releases before 0.4.0 can't read the configuration" in await own_mesh.refusals()
    await new.stop()
    await first.stop()
    second = await own_mesh.start_auth()
    refused = second.node.metrics.nats_logins.labels(role="", result="refused")
    await until(lambda: refused._value.get() > 0)
    assert not is_connected(old)
    # The way back: the document goes, at a gateway that can read it.
    again = await own_mesh.start(IdleGateway, own_mesh.plan("new"))
    assert is_connected(again)
    again.node.announce_config(ConfigReading("0.4.0", "0.3.0", 3))
    await until(lambda: is_connected(old))


async def test_a_lost_kick_is_made_up_for_by_the_sweep(own_mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_logins, "_SWEEP_SECONDS", 0.2)
    monkeypatch.setattr(nats_logins, "_PAGE", 1)  # several pages
    monkeypatch.setattr(nats_logins.NatsLogins, "_cut", lambda self, nodes: None)
    await own_mesh.start_auth()
    workers = [await own_mesh.join(name) for name in ("one", "two", "three")]
    await own_mesh.revoke(workers[1].node.id)
    await until(lambda: not is_connected(workers[1]))
    assert [is_connected(worker) for worker in workers] == [True, False, True]


async def test_without_auth_connections_live_and_new_ones_wait_for_it(own_mesh: Mesh) -> None:
    first = await own_mesh.start_auth()
    worker, ticket = await own_mesh.join("one"), await own_mesh.ticket()
    await first.stop()
    key = node_keys.load(own_mesh.plan("two").node_key_file)
    late = NatsClient(own_mesh.server.url, key, name="late", token=nats_token(ticket, key))
    with pytest.raises(errors.Unavailable, match="needs auth, which does not answer"):
        await late.connect(deadline_seconds=0.5)
    assert is_connected(worker)
    async with asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(late.connect(deadline_seconds=60))
        await own_mesh.start_auth()
        back = time.monotonic()
        await connecting
    assert time.monotonic() - back < 5
    await late.close()


async def test_certified_nodes_come_back_without_postgresql(own_mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await own_mesh.start_auth()
    workers = [await own_mesh.join(name) for name in ("one", "two")]

    async def refuse(*_: object) -> None:
        raise errors.Unavailable("PostgreSQL is away")

    for method in ("row", "rows", "value", "run"):
        monkeypatch.setattr(Database, method, refuse)
    own_mesh.server.kill()
    await until(lambda: not any(is_connected(node) for node in (first, *workers)))
    own_mesh.server.start()
    await until(lambda: all(is_connected(node) for node in (first, *workers)))


async def test_an_expired_certificate_is_renewed_before_the_node_starts(mesh: Mesh) -> None:
    worker, plan = await mesh.join("one"), mesh.plan("one")
    await worker.stop()
    found = membership_file.load(plan.state_file)
    assert found is not None
    ca = node_keys.load_authority(mesh.home.secrets / "mesh_ca.nk")
    old = certificates.issue(ca, Subject(worker.node.id, Role.WORKER), time.time() - 3 * 24 * 3600)
    membership_file.save(plan.state_file, msgspec.structs.replace(found, certificate=old))
    again = await mesh.start(IdleService, plan)
    assert again.node.trust.has_certificate(time.time())
    assert is_connected(again)


async def test_a_renewed_certificate_moves_the_connection_without_a_gap(mesh: Mesh) -> None:
    worker = await mesh.join("one")
    nats = worker.node.node_transports.nats
    assert nats is not None
    before = nats.nats._connection
    losses: list[bool] = []
    nats.nats.on_connection = losses.append
    reply = await worker.node.rpc.call(membership.renew_certificate, membership.RenewCertificate())
    ca = node_keys.load_authority(mesh.home.secrets / "mesh_ca.nk")
    later = certificates.issue(ca, Subject(worker.node.id, Role.WORKER), time.time() + 5)
    worker.node.renewal.take(msgspec.structs.replace(reply, certificate=later))
    await until(lambda: nats.nats._connection is not before)
    assert (losses, nats.connected) == ([], True)


async def test_a_node_that_the_operator_adds_is_admitted_at_once(mesh: Mesh) -> None:
    key_file = nats_server.add_node(mesh.home, MESH, "box", Role.WORKER)
    worker = await mesh.start(IdleService, NodeSettings(mesh=MESH, nats_url=mesh.server.url, node_key_file=key_file))
    assert is_connected(worker)
    # It can be revoked like any other node, and the enrollment list does not undo that.
    await until(lambda: worker.node.trust.certificate)
    await mesh.revoke(worker.node.id)
    await until(lambda: not is_connected(worker))
    (mesh.home.enrollment).touch()
    with pytest.raises(errors.Unavailable, match="refused this node's key"):
        await NatsClient(mesh.server.url, node_keys.load(key_file), name="box").connect(deadline_seconds=0.5)


async def test_one_address_cannot_keep_auth_busy_and_its_known_nodes_get_in(own_mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await own_mesh.start_auth()
    worker, ticket = await own_mesh.join("one"), await own_mesh.ticket()
    monkeypatch.setattr(login_limits, "MAX_UNKNOWN_LOGINS", 3)
    # A second without end: a real one may begin again in the middle of the flood.
    monkeypatch.setattr(login_limits.LoginRates, "clear", lambda self: None)
    keys = [node_keys.NodeKey(node_keys.new_seed()) for _ in range(30)]
    clients = [NatsClient(own_mesh.server.url, key, name="flood") for key in keys]
    results = await asyncio.gather(*(each.connect(deadline_seconds=0.2) for each in clients), return_exceptions=True)
    assert all(isinstance(each, errors.Unavailable) for each in results)
    certificate = login_tokens.of_certificate(worker.node.trust.certificate)
    key = node_keys.load(own_mesh.plan("one").node_key_file)
    async with connected(own_mesh.server.url, key, token=lambda nonce: certificate) as known:
        assert known.connected, "from the same address, beside the flood"
    with pytest.raises(errors.Unavailable, match="refused"):
        await NatsClient(own_mesh.server.url, keys[0], name="unknown", token=nats_token(ticket, keys[0])).connect(deadline_seconds=0.2)
    monkeypatch.undo()
    assert any("logins in a second from this address" in reason for reason in await own_mesh.refusals())
    assert is_connected(worker)


async def test_one_node_cannot_keep_auth_busy(own_mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await own_mesh.start_auth()
    key = node_keys.load(nats_server.add_node(own_mesh.home, MESH, "box", Role.WORKER))
    async with connected(own_mesh.server.url, key):  # auth reads the list again
        pass
    monkeypatch.setattr(login_limits.LoginRates, "clear", lambda self: None)
    for _ in range(login_limits.MAX_NODE_LOGINS):
        async with connected(own_mesh.server.url, key):
            pass
    with pytest.raises(errors.Unavailable, match="refused"):
        await NatsClient(own_mesh.server.url, key, name="box").connect(deadline_seconds=0.2)
    monkeypatch.undo()
    assert any("logins in a second of this node" in reason for reason in await own_mesh.refusals())


# --- what one node may take of the servers -----------------------------------------------------------------------------


@asynccontextmanager
async def connected(url: str, key: node_keys.NodeKey, token: Callable[[str], str] = login_tokens.without) -> AsyncIterator[NatsClient]:
    """A connection that is not made again."""
    found = NatsClient(url, key, name="hostile", token=token)
    await found.connect(deadline_seconds=10)
    yield found
    await found.close()


def subscriptions_in(payload: bytes) -> dict[str, int]:
    return {each["authorized_user"]: each["subscriptions"] for each in json.loads(payload)["data"]["connections"]}


async def test_a_worker_cannot_exhaust_the_server_by_subscriptions(own_mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_logins, "_SUBSCRIPTIONS_SECONDS", 3600.0)
    auth_node = await own_mesh.start_auth()
    assert isinstance(auth_node.service, AuthService)
    logins = auth_node.service._logins
    assert logins is not None
    keys = {role: node_keys.load(nats_server.add_node(own_mesh.home, MESH, f"a {role}", role)) for role in (Role.WORKER, Role.METRICS)}
    async with connected(own_mesh.server.url, keys[Role.WORKER]) as worker, connected(own_mesh.server.url, keys[Role.METRICS]) as metrics:
        for role, client in ((Role.WORKER, worker), (Role.METRICS, metrics)):
            for number in range(3_000):
                client.subscribe(f"aimesh.{MESH}.{role}.{keys[role].id}.x{number}.y", lambda _: None)
            await client.flush(deadline_seconds=10)
        async with connected(own_mesh.server.url, node_keys.load(own_mesh.home.secrets / "nats_sys.nk")) as system:
            counts: asyncio.Queue[dict[str, int]] = asyncio.Queue()
            system.subscribe("_INBOX.test", lambda message: counts.put_nowait(subscriptions_in(message.payload)))
            system.publish("$SYS.REQ.SERVER.PING.CONNZ", b'{"auth": true, "acc": "MESH"}', reply="_INBOX.test")
            async with asyncio.timeout(HANG_SECONDS):
                found = await counts.get()
            assert found[keys[Role.WORKER].id] == found[keys[Role.METRICS].id] == 1024, "the server's limit"
        await logins._request_subscriptions()
        await until(lambda: not worker.connected)
        assert metrics.connected, "a service may have so many"


async def test_the_ninth_connection_of_a_node_ends_its_oldest_over_all_servers_and_auths(settings: AuthSettings, tmp_path: Path) -> None:
    home = home_in(tmp_path)
    nats_server.ensure(home, MESH, 0, "callout")
    key, other = (node_keys.load(nats_server.add_node(home, MESH, name, Role.WORKER)) for name in ("box", "another box"))
    replicas = [nats_server.add_node(home, MESH, f"auth {number}", Role.AUTH) for number in range(2)]
    configuration = (home.nats / "users.conf").read_text() + "max_payload: 2MB\nmax_control_line: 16KB\n"
    with cluster(tmp_path, 3, configuration) as servers:
        async with running_mesh(home, servers[0], settings) as mesh, AsyncExitStack() as stack:
            for key_file, server in zip((mesh.settings.node_key_file, *replicas), servers, strict=True):
                await mesh.start(AuthService, msgspec.structs.replace(mesh.settings, node_key_file=key_file, nats_url=server.url))
            bystander = await stack.enter_async_context(connected(servers[1].url, other))
            clients = []
            for number in range(12):
                clients.append(await stack.enter_async_context(connected(servers[number % 3].url, key)))
                await until(lambda: sum(client.connected for client in clients) == min(len(clients), 8))
            assert [client.connected for client in clients] == [False] * 4 + [True] * 8
            assert bystander.connected


# --- tickets of replicas -----------------------------------------------------------------------------------------------


async def test_a_ticket_with_places_admits_no_more_at_once_and_a_stop_frees_one(mesh: Mesh) -> None:
    ticket = await mesh.ticket(uses=None, active_most=2)
    one, _ = [await mesh.start(IdleService, mesh.plan(name, ticket)) for name in ("one", "two")]
    key = node_keys.load(mesh.plan("three").node_key_file)
    with pytest.raises(errors.Unavailable, match="refused"):
        await NatsClient(mesh.server.url, key, name="three", token=nats_token(ticket, key)).connect(deadline_seconds=0.5)
    assert any("already has 2 active nodes" in reason for reason in await mesh.refusals())
    await one.stop()
    assert is_connected(await mesh.start(IdleService, mesh.plan("three", ticket)))


@pytest.mark.parametrize("most_asked", [2, 1], ids=["one by one", "by a list of all"])
async def test_revoking_a_ticket_with_its_nodes_cuts_them_all_off(mesh: Mesh, monkeypatch: pytest.MonkeyPatch, most_asked: int) -> None:
    monkeypatch.setattr(nats_logins, "_MAX_ASKED", most_asked)
    ticket, other = await mesh.ticket(uses=None, active_most=10), await mesh.join("other")
    workers = [await mesh.start(IdleService, mesh.plan(f"w{number}", ticket)) for number in range(2)]
    await mesh.administer(membership.revoke_ticket, membership.RevokeTicket(tickets.parse(ticket).id, with_nodes=True))
    await until(lambda: not any(is_connected(worker) for worker in workers), seconds=5)
    # A node without Hyperswarm learns of the revocation before it is cut off; afterwards it would be unreachable.
    assert all(worker.node.trust.is_revoked for worker in workers)
    assert is_connected(other)


async def test_a_rotated_ticket_has_equal_rights_and_the_old_one_works_on(mesh: Mesh) -> None:
    ticket = await mesh.ticket(uses=None, active_most=4, networks=("127.0.0.0/8",), ttl_seconds=90 * 86_400)
    fresh = await mesh.administer(membership.rotate_ticket, membership.RotateTicket(tickets.parse(ticket).id))
    assert (fresh.row.uses, fresh.row.active_most, fresh.row.networks) == (None, 4, ("127.0.0.0/8",))
    assert 89 < (fresh.row.expires_at - datetime.now(UTC)).days + 1 < 91
    for name, given in (("one", ticket), ("two", fresh.ticket)):
        assert is_connected(await mesh.start(IdleService, mesh.plan(name, given)))


async def test_a_ticket_of_another_network_is_refused_also_for_who_is_a_newcomer_otherwise(mesh: Mesh) -> None:
    elsewhere = await mesh.ticket(uses=None, active_most=2, networks=("10.0.0.0/8",))
    key = node_keys.load(mesh.plan("one").node_key_file)
    with pytest.raises(errors.Unavailable, match="refused"):
        await NatsClient(mesh.server.url, key, name="one", token=nats_token(elsewhere, key)).connect(deadline_seconds=0.5)
    assert any("does not work from 127.0.0.1" in reason for reason in await mesh.refusals())
    # A newcomer that logged in with another ticket shows this one only when it enrolls.
    good, bound = tickets.parse(await mesh.ticket()), tickets.parse(elsewhere)
    route = replace(enrollment.route_of(good), nats=(mesh.server.url,))
    trust = Trust(key, Role.NEWCOMER, route.authorities)
    async with enrollment.open_session(route, trust, lambda text: None, nats_token=nats_token(tickets.render(good), key)) as session:

        def use(auth_node: Peer) -> membership.EnrollNode:
            text = tickets.use_text(bound.id, key.id, auth_node.node, auth_node.channel)
            return membership.EnrollNode(bound.id, bound.key.sign("enroll", text), key.sign("enroll", text))

        with pytest.raises(errors.BadTicket, match="bound to networks"):
            await session.ask(membership.enroll_node, use)


async def test_a_ticket_that_is_used_from_a_new_network_is_counted_once(mesh: Mesh, auth_node: Node) -> None:
    counter = auth_node.metrics.ticket_new_networks
    ticket = await mesh.ticket(uses=None, active_most=9, networks=("127.0.0.0/8",))
    await mesh.start(IdleService, mesh.plan("first", ticket))
    assert counter._value.get() == 0, "the first network of a ticket is where it belongs"
    statement = "UPDATE auth.tickets SET seen_networks = '{10.0.0.0/24}' WHERE id = $1"
    await by_hand.run(mesh.settings.database_url, statement, tickets.parse(ticket).id)
    for name in ("second", "third"):
        await mesh.start(IdleService, mesh.plan(name, ticket))
    assert counter._value.get() == 1


async def test_a_node_whose_row_is_gone_does_not_become_the_operators(mesh: Mesh) -> None:
    worker = await mesh.join("one")
    await by_hand.run(mesh.settings.database_url, "DELETE FROM auth.nodes WHERE id = $1", worker.node.id)
    with pytest.raises(errors.NotCertified, match="does not know this node"):
        await worker.node.rpc.call(membership.renew_certificate, membership.RenewCertificate())


async def test_a_node_that_cannot_join_makes_its_key_and_ends_with_what_to_do(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = await mesh.ticket()
    await mesh.administer(membership.revoke_ticket, membership.RevokeTicket(tickets.parse(ticket).id))
    plan = mesh.plan("one", ticket)
    plan.node_key_file.unlink()
    monkeypatch.setattr(enrollment, "EnrollmentOptions", partial(enrollment.EnrollmentOptions, find_seconds=0.3))
    # BadSettings ends a service with status 2.
    with pytest.raises(errors.BadSettings, match="cannot join with the ticket in JOIN_TICKET_FILE") as refused:
        async with member(plan, Role.WORKER):
            pass
    assert "aicli admin nodes refusals" in refused.value.hint
    assert "the ticket was revoked" in await mesh.refusals()
    assert plan.node_key_file.stat().st_mode & 0o077 == 0


async def test_tickets_of_the_operators_list_work_from_the_first_start_and_stay_revoked(own_mesh: Mesh) -> None:
    made = replica_tickets.ensure(own_mesh.home, MESH, [own_mesh.server.url], 2, ("127.0.0.0/8",))
    assert set(made) == set(replica_tickets.ROLES)
    assert replica_tickets.ensure(own_mesh.home, MESH, [own_mesh.server.url], 2, ()) == []
    ticket = (replica_tickets.folder_of(own_mesh.home) / Role.WORKER).read_text()
    first = await own_mesh.start_auth()
    worker = await own_mesh.start(IdleService, own_mesh.plan("one", ticket))
    standing = worker.node.trust.standing()
    assert standing is not None
    # The node belongs to the operator, like the nodes on the operator's list.
    assert (standing.role, standing.owner) == (Role.WORKER, "")
    await own_mesh.administer(membership.revoke_ticket, membership.RevokeTicket(tickets.parse(ticket).id))
    await first.stop()
    await own_mesh.start_auth()
    assert {each.state.value for each in (await own_mesh.administer(membership.list_tickets, membership.ListTickets())).tickets} == {
        "good",
        "revoked",
    }


async def test_a_ticket_that_the_operator_makes_while_auth_runs_works(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrollment, "EnrollmentOptions", partial(enrollment.EnrollmentOptions, find_seconds=0.3))
    replica_tickets.ensure(mesh.home, MESH, [mesh.server.url], 2, ("127.0.0.0/8",))
    await mesh.start(IdleService, mesh.plan("one", (replica_tickets.folder_of(mesh.home) / Role.WORKER).read_text()))


async def test_replicas_by_an_administrators_ticket_are_the_operators_unless_it_names_an_owner(mesh: Mesh) -> None:
    for name, changed, owned in (("one", {}, False), ("two", {"owner": "admin"}, True)):
        worker = await mesh.start(IdleService, mesh.plan(name, await mesh.ticket(uses=None, active_most=5, **changed)))
        standing = worker.node.trust.standing()
        assert standing is not None
        assert bool(standing.owner) is owned


async def test_a_list_that_could_not_be_read_is_read_again(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    key = node_keys.load(nats_server.add_node(mesh.home, MESH, "another box", Role.WORKER))

    async def refuse(*_: object) -> None:
        raise errors.Unavailable("PostgreSQL is away")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "rows", refuse)
        with pytest.raises(errors.Unavailable, match="refused"):
            await NatsClient(mesh.server.url, key, name="box").connect(deadline_seconds=0.3)
    again = NatsClient(mesh.server.url, key, name="box")
    await again.connect(deadline_seconds=5)
    await again.close()


async def test_a_revoked_node_is_cut_off_at_every_server_of_a_cluster(settings: AuthSettings, tmp_path: Path) -> None:
    home = home_in(tmp_path)
    nats_server.ensure(home, MESH, 0, "callout")
    configuration = (home.nats / "users.conf").read_text() + "max_payload: 2MB\nmax_control_line: 16KB\n"
    with cluster(tmp_path, 3, configuration) as servers:
        async with running_mesh(home, servers[0], settings) as mesh:
            await mesh.start_auth()
            ticket = await mesh.ticket(uses=None, active_most=5)
            workers = []
            for number, server in enumerate(servers):
                plan = msgspec.structs.replace(mesh.plan(f"w{number}", ticket), nats_url=server.url)
                workers.append(await mesh.start(IdleService, plan))
            await mesh.administer(membership.revoke_ticket, membership.RevokeTicket(tickets.parse(ticket).id, with_nodes=True))
            await until(lambda: not any(is_connected(worker) for worker in workers), seconds=1)
