"""The whole permission table of ``shared.protocol.topics`` on a real nats-server: a role can do what it may, and nothing else.

The permissions are written here a second time, by subject kind and in the words of IDENTITY.md, so that a mistake in
the table does not go unnoticed.
"""

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.auth.nodes.nats_callout import LoginTrust
from shared.identity import node_keys
from shared.protocol import topics
from shared.types import SERVICE_ROLES, NodeId, Role
from stack import secret_files, stack_home
from stack.servers import nats_server
from stack.stack_home import StackHome
from tests import logins
from tests.testnet import MESH, NatsServer

A, G, W, M, B, C, O = (Role.AUTH, Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT, Role.OPERATOR)  # noqa: E741
N = Role.NEWCOMER
ROLES = (A, G, W, M, B, C, O, N)
#: from -> to. Since docs/decisions/0015, clients and metrics call each other.
SENDS = {A: {G, W, M, B, C, N}, G: {A, W, M, B, C}, W: {A, G, M}, M: {A, G, W, B, C}, B: {A, G, M}, C: {A, G, M}, O: set(), N: {A}}
SEES = {A: {A, G, W, M, B}, G: {A, G, W, M, B}, W: {A, G, M}, M: {A, G, W, M, B}, B: {A, G, M}, C: {A, G, M}, O: {A, G, W, M, B}, N: {A}}
#: Another user's node.
OTHER = NodeId(node_keys.NodeKey(node_keys.new_seed()).id)
OTHER_MESH = topics.MeshName("elsewhere")


def publishing(role: Role, node: NodeId) -> dict[str, bool]:
    """Return subject -> whether this node may publish there."""
    serves = role in SERVICE_ROLES
    table = {}
    for to in ROLES:
        table[topics.link(MESH, to, OTHER, role, node)] = to in SENDS[role]
        table[topics.link(MESH, to, OTHER, role, OTHER)] = False  # as another node
        table[topics.link(OTHER_MESH, to, OTHER, role, node)] = False
        if to is not role:
            table[topics.link(MESH, to, OTHER, to, node)] = False  # as another role
            table[topics.announcement(MESH, to, node)] = False
            table[topics.event(MESH, to, node, "key.revoked")] = False
        table[topics.micro_endpoint(MESH, to, "auth.validateApiKey")] = role is O
        table[f"$SRV.PING.{to}"] = role is O
    table |= {
        topics.announcement(MESH, role, node): serves,
        topics.announcement(MESH, role, OTHER): False,
        topics.event(MESH, role, node, "key.revoked"): serves,
        topics.event(MESH, role, OTHER, "key.revoked"): False,
        topics.announcement_query(MESH): role not in (O, N),
        topics.newcomer_query(MESH, node): role is N,
        topics.newcomer_query(MESH, OTHER): False,
        topics.announcement_query(OTHER_MESH): False,
        "_INBOX.abc.1": serves,
        "$SRV.PING": role is O,
        "$SRV.INFO.auth.x": role is O,
        "$SYS.REQ.SERVER.PING": False,
        "$JS.API.INFO": False,
        "anything": False,
    }
    return table


def subscribing(role: Role, node: NodeId) -> dict[str, bool]:
    serves = role in SERVICE_ROLES
    table = {}
    for of in ROLES:
        table[topics.announcements(MESH, of)] = of in SEES[role]
        table[topics.inbox(MESH, of, OTHER)] = False
        table[f"$SRV.PING.{of}"] = serves and of is role
        table[f"$SRV.STATS.{of}.*"] = serves and of is role
        table[f"aimesh.{MESH}.rpc.{of}.*"] = serves and of is role
        if of is not role:
            table[topics.inbox(MESH, of, node)] = False
    table |= {
        topics.inbox(MESH, role, node): role is not O,
        f"aimesh.{MESH}.{role}.*.*.*": False,  # all nodes of one role
        f"aimesh.{MESH}.*.{node}.*.*": False,
        f"aimesh.{MESH}.>": False,
        ">": False,
        "*": False,
        topics.announcement_query(MESH): serves,
        topics.newcomer_query(MESH, "*"): role is A,
        topics.events(MESH): role is M,
        "_INBOX.>": role is O,
        "$SRV.PING": serves,
        "$SRV.INFO": serves,
        "$SRV.>": False,
        "$SYS.>": False,
        f"aimesh.{MESH}.rpc.>": False,
    }
    return table


@dataclass(frozen=True)
class Arena:
    """A server with one node per role, and an observer with all permissions: what it receives, and what others receive from it, counts."""

    server: NatsServer
    keys: dict[Role, Path]
    observer_seed: str
    knows_added_keys: bool = True


@pytest.fixture(scope="module", params=["users", "callout"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    with tempfile.TemporaryDirectory(prefix="aimesh-nats-") as folder:
        if request.param == "callout":
            with callout_arena(Path(folder)) as made:
                yield made
            return
        server = NatsServer(Path(folder))
        keys = {role: server.key(f"one-{role}", role) for role in ROLES}
        observer = node_keys.NodeKey(node_keys.new_seed())
        users = server.folder / "users.conf"
        users.write_text(users.read_text().replace("users = [", f"users = [\n  {{ nkey: {observer.id} }}\n"))
        server.start()
        yield Arena(server, keys, observer.seed.decode())
        server.kill()


@contextlib.contextmanager
def callout_arena(folder: Path) -> Iterator[Arena]:
    """The same, but the server asks a callout for each login, which answers as auth does."""
    home = stack_home.locate({"AIMESH_HOME": str(folder / "home")})
    stack_home.ensure_folders(home)
    secret_files.ensure(home)
    server = NatsServer(home.nats)
    nats_server.ensure(home, MESH, server.port, "callout")
    keys = {role: nats_server.add_node(home, MESH, f"one-{role}", role) for role in ROLES}
    observer = node_keys.NodeKey(node_keys.new_seed())
    users = home.nats / "users.conf"
    text = users.read_text().replace("MESH: {}", f"MESH: {{ users: [ {{ nkey: {observer.id} }} ] }}")
    users.write_text(text.replace("auth_users: [ ", f"auth_users: [ {observer.id}, "))
    server.start()
    trust = LoginTrust((), frozenset(), {node.node: node.role for node in nats_server.read_enrolled(home)})
    ready, stop = threading.Event(), threading.Event()
    answering = threading.Thread(target=lambda: asyncio.run(answer_logins(home, server.url, trust, ready, stop)))
    answering.start()
    assert ready.wait(60)
    try:
        yield Arena(server, keys, observer.seed.decode(), knows_added_keys=False)
    finally:
        stop.set()
        answering.join()
        server.kill()


async def answer_logins(home: StackHome, url: str, trust: LoginTrust, ready: threading.Event, stop: threading.Event) -> None:
    async with logins.answered(home, url, trust):
        ready.set()
        while not stop.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.02)


async def ignore(_: Exception) -> None:
    """Ignores the refusals that a client gets; only delivered messages count."""


@asynccontextmanager
async def connected(server: NatsServer, seed: str) -> AsyncIterator[Client]:
    client = Client()
    try:
        await client.connect(server.url, nkeys_seed_str=seed, error_cb=ignore, allow_reconnect=False, connect_timeout=5)
        yield client
    finally:
        await client.close()


def seed_in(key_file: Path) -> str:
    return key_file.read_text().strip()


class Ear:
    """Records what a connection receives; the message END sets ``end``. Messages of one sender keep their order, so all earlier
    ones have arrived by then. (flush() of nats-py guarantees less: its PING may overtake pending messages.)"""

    def __init__(self) -> None:
        self.subjects: set[str] = set()
        self.patterns: set[str] = set()
        self.end = asyncio.Event()

    def listener(self, pattern: str) -> Callable[[Msg], Awaitable[None]]:
        async def note(message: Msg) -> None:
            if message.data == END:
                self.end.set()
            else:
                self.subjects.add(message.subject)
                self.patterns.add(pattern)

        return note

    async def until_end(self) -> None:
        async with asyncio.timeout(30):
            await self.end.wait()
        self.end.clear()


END = b"end"


@asynccontextmanager
async def observed(arena: Arena, role: Role) -> AsyncIterator[tuple[Client, Ear, Client]]:
    """The observer, its received messages, and the node's client."""
    ear = Ear()
    async with connected(arena.server, arena.observer_seed) as observer, connected(arena.server, seed_in(arena.keys[role])) as own:
        await observer.subscribe(">", cb=ear.listener(">"))
        await observer.publish("hear.yourself", END)
        await ear.until_end()
        yield observer, ear, own


@pytest.mark.parametrize("role", ROLES)
async def test_role_may_publish_only_where_the_table_allows(arena: Arena, role: Role) -> None:
    table = publishing(role, node_keys.load(arena.keys[role]).id)
    allowed = {subject for subject, may in table.items() if may}
    async with observed(arena, role) as (_, ear, own):
        for subject in table:
            await own.publish(subject, b"")
        await own.publish(min(allowed), END)
        await ear.until_end()
    assert ear.subjects == allowed


@pytest.mark.parametrize("role", ROLES)
async def test_role_receives_only_what_the_table_allows(arena: Arena, role: Role) -> None:
    node = node_keys.load(arena.keys[role]).id
    table = subscribing(role, node)
    allowed = {pattern for pattern, may in table.items() if may}
    own_ear = Ear()
    async with observed(arena, role) as (observer, ear, own):
        for pattern in table:
            await own.subscribe(pattern, cb=own_ear.listener(pattern))
        await own.publish(min(subject for subject, may in publishing(role, node).items() if may), END)
        await ear.until_end()
        for pattern in [*table, *allowed]:
            await observer.publish(an_example_of(pattern), b"")
        for pattern in allowed:
            own_ear.end.clear()
            await observer.publish(an_example_of(pattern), END)
            await own_ear.until_end()
    assert own_ear.patterns == allowed


def an_example_of(pattern: str) -> str:
    return pattern.replace("*", "x").replace(">", "x.y")


async def test_message_reaches_its_addressee(arena: Arena) -> None:
    gateway, worker = (node_keys.load(arena.keys[role]) for role in (Role.GATEWAY, Role.WORKER))
    async with connected(arena.server, gateway.seed.decode()) as sender, connected(arena.server, worker.seed.decode()) as receiver:
        inbox = await receiver.subscribe(topics.inbox(MESH, Role.WORKER, worker.id))
        while True:  # the subscription takes a moment to become active
            await sender.publish(topics.link(MESH, Role.WORKER, worker.id, Role.GATEWAY, gateway.id), b"hello")
            with contextlib.suppress(TimeoutError):
                message = await inbox.next_msg(timeout=0.05)
                break
        assert message.data == b"hello"
        assert topics.sender_of(message.subject) == (Role.GATEWAY, gateway.id)


@pytest.mark.parametrize("credential", ["a stranger's key", "nothing"])
async def test_unknown_clients_are_rejected(arena: Arena, credential: str) -> None:
    seed = node_keys.new_seed().decode() if credential != "nothing" else None
    client = Client()
    try:
        with pytest.raises((NatsError, OSError)):
            async with asyncio.timeout(30):
                await client.connect(
                    arena.server.url, nkeys_seed_str=seed, allow_reconnect=False, max_reconnect_attempts=1, error_cb=ignore
                )
    finally:
        await client.close()


async def test_added_node_connects_and_no_connection_is_dropped(arena: Arena) -> None:
    if not arena.knows_added_keys:
        pytest.skip("auth reads the list again: tests/services/auth/nodes/test_nats_logins.py")
    async with connected(arena.server, seed_in(arena.keys[Role.WORKER])) as first:
        key_file = arena.server.key("second", Role.WORKER)
        async with asyncio.timeout(30):
            while True:
                try:
                    async with connected(arena.server, seed_in(key_file)):
                        break
                except (NatsError, OSError):  # the server takes a moment to reload its users
                    await asyncio.sleep(0.01)
        await first.flush(timeout=5)
        assert first.is_connected
