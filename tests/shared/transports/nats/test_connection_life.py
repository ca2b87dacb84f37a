"""The client and the link layer with a server that answers late or cuts connections, and when they are closed during a login."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from shared import errors
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.node.transports import Transports
from shared.protocol.directory import Directory
from shared.protocol.wire import MAX_BODY_BYTES, Call, Frame, Piece, Ping
from shared.transports import nats_link
from shared.transports.link import Link, LocalNode
from shared.transports.nats import nats_client
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from shared.transports.nats_link import NatsTransport
from shared.types import Peer, Role
from tests.shared.transports.nats.scripted_nats import ScriptedConnection, ScriptedNats, scripted_nats
from tests.testnet import MESH, until


def client_of(server: ScriptedNats) -> NatsClient:
    return NatsClient(server.url, node_keys.NodeKey(node_keys.new_seed()), name="test")


@asynccontextmanager
async def transport_of(server: ScriptedNats, role: Role) -> AsyncIterator[NatsTransport]:
    transport = NatsTransport(LocalNode(MESH, role, node_keys.NodeKey(node_keys.new_seed()), "test"), server.url)
    opened: list[Link] = []
    transport.on_link = opened.append
    await transport.connect(deadline_seconds=30)
    await transport.nats.flush(deadline_seconds=30)
    async with background() as tasks:
        tasks.create_task(transport.run())
        yield transport
        await transport.close()


def peer_of(transport: NatsTransport) -> Peer:
    return Peer(transport.me.role, transport.me.node)


def session_of(server: ScriptedNats, transport: NatsTransport) -> ScriptedConnection:
    """Return the connection that receives what is sent to this node."""
    [found] = [each for each in server.connections if transport.me.node in str(each.subscriptions)]
    return found


# --- a late PONG --------------------------------------------------------------------------------------------------------


async def test_a_node_dialed_before_its_pong_is_not_mute_afterwards() -> None:
    async with scripted_nats() as server, transport_of(server, Role.GATEWAY) as caller, transport_of(server, Role.WORKER) as worker:
        # Delay every PONG to a connection that has subscribed.
        server.holds = lambda connection: bool(connection.subscriptions)
        old = session_of(server, worker)
        old.cut()
        await until(lambda: any(worker.me.node in str(each.subscriptions) for each in server.connections if each is not old), seconds=10)
        before = session_of(server, worker).delivered
        async with asyncio.TaskGroup() as tasks:
            dialling = tasks.create_task(caller.dial(peer_of(worker)))
            await until(lambda: session_of(server, worker).delivered > before)
            server.release()
            await asyncio.wait({dialling})
            dialling.exception()
            await until(lambda: worker.connected, seconds=10)
            assert (await caller.dial(peer_of(worker))).closed is None
            assert (await worker.dial(peer_of(caller))).closed is None


async def test_after_every_reconnect_both_sides_can_dial_immediately() -> None:
    async with scripted_nats() as server, transport_of(server, Role.GATEWAY) as caller, transport_of(server, Role.WORKER) as worker:
        for number in range(100):
            moved = (caller, worker)[number % 2]
            reconnects = moved.nats.reconnects
            session_of(server, moved).cut()
            await until(lambda moved=moved, before=reconnects: moved.nats.reconnects > before, seconds=10)  # type: ignore[misc]
            # The event loop decides each time when the other end's HELLO meets our SUB.
            links = await asyncio.gather(moved.dial(peer_of((worker, caller)[number % 2])), *_dials(server, caller, worker, moved))
            assert [link.closed for link in links] == [None] * len(links)


def _dials(server: ScriptedNats, caller: NatsTransport, worker: NatsTransport, moved: NatsTransport) -> list[Awaitable[Link]]:
    """Dial from the other side, if the server already knows the moved side's new connection."""
    other = worker if moved is caller else caller
    heard = any(moved.me.node in str(each.subscriptions) for each in server.connections)
    return [other.dial(peer_of(moved))] if heard else []


async def test_a_link_layer_that_cannot_write_is_unhealthy_until_it_can_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_link, "STUCK_SECONDS", 0.1)
    async with scripted_nats() as server, transport_of(server, Role.GATEWAY) as caller, transport_of(server, Role.WORKER) as worker:
        node_transports = Transports(caller.trust, Directory(caller.now), caller, None, None)
        link = await caller.dial(peer_of(worker))
        assert [check.ok for check in node_transports.checks()] == [True]
        session = session_of(server, caller)
        session.reads.clear()

        def push() -> bool:
            while not caller.nats.is_full:
                caller.nats.publish("aimesh.test.nobody", bytes(1024 * 1024))
            link.send(Call(1, "a.b", 1000, b""))
            return "nothing could be written" in caller.trouble

        await until(push, seconds=10)
        assert [check.ok for check in node_transports.checks()] == [False]
        assert caller.nats.is_full
        assert caller.connected
        session.reads.set()
        await until(lambda: [check.ok for check in node_transports.checks()] == [True], seconds=10)


async def test_every_link_is_written_if_the_socket_fills_up_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_client, "HIGH_WATER_BYTES", 1)
    async with (
        scripted_nats() as server,
        transport_of(server, Role.GATEWAY) as caller,
        transport_of(server, Role.WORKER) as worker,
    ):
        links = [await caller.dial(peer_of(worker)) for _ in range(4)]
        await until(lambda: len(worker.links()) == len(links))
        received: dict[int, list[Frame]] = {}
        for answering in worker.links():
            answering.on_frames = received.setdefault(answering.id, []).extend
        assert caller.nats._connection is not None
        assert caller.nats._connection.socket._io_writer is not None
        reading = session_of(server, caller).writer.transport
        assert isinstance(reading, asyncio.Transport)
        # The sockets' buffers hold less than one link sends.
        reading.pause_reading()
        caller.nats._connection.socket._io_writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        for link in links:
            for number in range(4):
                link.send(Piece(number, bytes(MAX_BODY_BYTES), more=True))
        await until(lambda: caller.nats.is_full, seconds=10)
        await until(lambda: caller.unwritten_seconds > 0)
        reading.resume_reading()
        await until(lambda: [len(frames) for frames in received.values()] == [4] * len(links), seconds=10)
        await until(lambda: caller.unwritten_seconds == 0)
        assert [link.closed for link in links] == [None] * len(links)


async def test_a_link_writes_no_message_above_the_servers_limit() -> None:
    async with scripted_nats() as server:
        server.max_payload = 160 * 1024
        async with transport_of(server, Role.GATEWAY) as caller, transport_of(server, Role.WORKER) as worker:
            link = await caller.dial(peer_of(worker))
            await until(lambda: bool(worker.links()))
            received: list[Frame] = []
            worker.links()[0].on_frames = received.extend
            for number in range(10):
                link.send(Piece(number, bytes(MAX_BODY_BYTES), more=True))
            await until(lambda: len(received) == 10, seconds=10)
            assert server.accepted == 2
            assert link.closed is None


# --- one connection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subscribed", [False, True], ids=["late answer to the login", "late answer after it"])
async def test_a_slow_login_leaves_one_connection_and_one_delivery(monkeypatch: pytest.MonkeyPatch, subscribed: bool) -> None:
    monkeypatch.setattr(nats_client, "LOGIN_SECONDS", (0.3, 10.0))
    async with scripted_nats() as server:
        server.holds = lambda connection: server.accepted < 4 and bool(connection.subscriptions) is subscribed
        client = client_of(server)
        heard: list[NatsMessage] = []
        client.subscribe("a.b", heard.append)
        await client.connect(deadline_seconds=20)
        server.release()
        await client.flush(deadline_seconds=30)
        await until(lambda: len(server.connections) == 1)
        client.publish("a.b", b"once")
        await client.flush(deadline_seconds=30)
        assert [message.payload for message in heard] == [b"once"]
        await client.close()
        await until(lambda: not server.connections)


async def test_closing_during_the_login_leaves_no_connection() -> None:
    async with scripted_nats() as server:
        server.holds = lambda connection: True
        client = client_of(server)
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(_refused(client))
            await until(lambda: any(each.held_pongs for each in server.connections))
            await client.close()
            server.release()
            await connecting
        assert not client.connected
        await until(lambda: not server.connections)
        assert server.accepted == 1


async def test_a_server_refused_after_the_login_keeps_no_connection() -> None:
    async with scripted_nats() as server:
        server.max_payload = 4096
        client = NatsClient(server.url, node_keys.NodeKey(node_keys.new_seed()), name="test", least_payload_bytes=8192)
        with pytest.raises(errors.Unavailable, match="messages of up to 4096 bytes"):
            await client.connect(deadline_seconds=0)
        assert server.accepted == 1
        await until(lambda: not server.connections)


async def test_closing_during_the_login_tries_no_other_server() -> None:
    async with scripted_nats() as first, scripted_nats() as second:
        first.holds = second.holds = lambda connection: True
        client = NatsClient(f"{first.url},{second.url}", node_keys.NodeKey(node_keys.new_seed()), name="test")
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(_refused(client))
            await until(lambda: any(each.held_pongs for each in (*first.connections, *second.connections)))
            await client.close()
            await connecting
        assert first.accepted + second.accepted == 1


async def test_closing_during_a_reconnect_leaves_no_connection() -> None:
    async with scripted_nats() as server:
        client = client_of(server)
        await client.connect(deadline_seconds=30)
        async with background() as tasks:
            tasks.create_task(client.run())
            server.holds = lambda connection: True
            server.connections[0].cut()
            await until(lambda: any(each.held_pongs for each in server.connections))
            await client.close()
            server.release()
            await until(lambda: not server.connections)
        assert not client.connected
        assert server.accepted == 2


@pytest.mark.parametrize("words", ['Permissions Violation for Publish to "a.b"', "Maximum Subscriptions Exceeded"])
async def test_a_refused_operation_leaves_the_connection_open(words: str) -> None:
    async with scripted_nats() as server:
        client = client_of(server)
        told: list[str] = []
        client.on_refused = told.append
        await client.connect(deadline_seconds=30)
        server.connections[0].send(f"-ERR '{words}'\r\n".encode())
        await client.flush(deadline_seconds=30)
        assert told == [words.lower()]
        assert client.connected
        await client.close()


async def test_a_server_that_accepts_and_evicts_immediately_is_not_hammered() -> None:
    async with scripted_nats() as server:
        client = client_of(server)
        client.subscribe("a.b", lambda message: None)
        times: list[float] = []

        def evict(connection: ScriptedConnection, verb: str) -> bool:
            if verb != "SUB":
                return False
            times.append(asyncio.get_running_loop().time())
            connection.send(b"-ERR 'User Authentication Expired'\r\n")
            connection.writer.close()
            return False

        server.cuts = evict
        await client.connect(deadline_seconds=30)
        async with background() as tasks:
            tasks.create_task(client.run())
            # The server records an eviction before the client has read it.
            await until(lambda: len(times) >= 4 and client.trouble is not None, seconds=20)
            assert client.trouble is not None
            assert "user authentication expired" in client.trouble.message
            await client.close()
        # 0.2, 0.4 and 0.8 seconds, each shortened by up to half.
        assert times[3] - times[0] >= 0.7


@pytest.mark.parametrize("leads", [True, False])
async def test_after_a_loss_only_the_clients_of_auth_log_in_immediately(monkeypatch: pytest.MonkeyPatch, leads: bool) -> None:
    """The server would not repeat its question to an auth that comes later."""
    monkeypatch.setattr(nats_client, "_SETTLE_SECONDS", (0.3, 0.3))
    loop = asyncio.get_running_loop()
    async with scripted_nats() as server:
        logins: list[float] = []

        def note(_connection: ScriptedConnection, verb: str) -> bool:
            if verb == "CONNECT":
                logins.append(loop.time())
            return False

        server.cuts = note
        client = NatsClient(server.url, node_keys.NodeKey(node_keys.new_seed()), name="test", leads=leads)
        await client.connect(deadline_seconds=30)
        assert client._connection is not None
        assert client._connection.socket.settle_seconds == 0, "no connection was lost"
        async with background() as tasks:
            tasks.create_task(client.run())
            lost_at = loop.time()
            server.connections[0].cut()
            await until(lambda: client.reconnects == 1)
            assert client._connection is not None
            assert client._connection.socket.settle_seconds == (0 if leads else 0.3)
            assert leads or logins[1] - lost_at >= 0.3
            await client.close()


async def _refused(client: NatsClient) -> None:
    with pytest.raises(errors.Unavailable, match="no NATS server answers at nats://"):
        await client.connect(deadline_seconds=30)


@pytest.mark.parametrize("is_up", [False, True])
async def test_a_client_that_is_stopped_while_it_connects_stops_at_any_moment(is_up: bool) -> None:
    """A node that was stopped while NATS was down could go on connecting forever: `wait_for` had lost the cancellation."""
    async with scripted_nats() as server:
        if not is_up:
            await server.stop()
        for turns in range(1000):
            connecting = asyncio.create_task(client_of(server)._log_in(30))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not connecting.cancel():
                break  # it had ended before
            with pytest.raises(asyncio.CancelledError):
                await connecting
        assert turns > 3
        assert (connecting.exception() is None) == is_up
        if is_up:
            connecting.result().socket.cut()


# --- callbacks and PINGs ------------------------------------------------------------------------------------------------


async def test_a_raising_callback_only_loses_its_own_message() -> None:
    async with scripted_nats() as server:
        client = client_of(server)
        heard: list[bytes] = []

        def hear(message: NatsMessage) -> None:
            if message.payload.startswith(b"bad"):
                raise ValueError("a message that our code cannot handle")
            heard.append(message.payload)

        await client.connect(deadline_seconds=30)
        client.subscribe("a.b", hear)
        for payload in (b"bad 1", b"good 1", b"bad 2", b"good 2", b"bad 3", b"good 3"):
            client.publish("a.b", payload)
        await client.flush(deadline_seconds=30)
        assert heard == [b"good 1", b"good 2", b"good 3"]
        assert client.connected
        assert client.callback_errors == 3
        assert server.accepted == 1
        await client.close()


async def test_flush_waits_for_the_reply_to_its_own_ping() -> None:
    async with scripted_nats() as server:
        client = client_of(server)
        await client.connect(deadline_seconds=30)
        [connection] = server.connections
        server.holds = lambda connection: True
        assert client._connection is not None
        await client._connection._send_ping()  # the keepalive's PING, which is answered first
        async with asyncio.TaskGroup() as tasks:
            flushing = tasks.create_task(client.flush(deadline_seconds=30))
            await until(lambda: connection.held_pongs == 2)
            heard: list[NatsMessage] = []
            client.subscribe("a.b", heard.append)
            connection.release(1)
            connection.deliver("1", "a.b", "", b"", b"behind the first PONG")
            await until(lambda: bool(heard))
            assert not flushing.done()
            connection.release(1)
        await client.close()


# --- when frames leave -------------------------------------------------------------------------------------------------


async def test_writes_of_many_links_in_one_turn_leave_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_nats() as server, transport_of(server, Role.GATEWAY) as caller, transport_of(server, Role.WORKER) as worker:
        links = [await caller.dial(peer_of(worker)) for _ in range(3)]
        assert caller.nats._connection is not None
        written: list[list[bytes]] = []
        with monkeypatch.context() as patch:
            patch.setattr(caller.nats._connection.socket, "writelines", written.append)
            for link in links:
                link.send(Ping(7))
            await until(lambda: bool(written))
        assert [data.startswith(b"PUB ") for data in written[0]] == [True] * 3


async def test_a_revoked_node_learns_it_from_the_peer_that_closes_its_link() -> None:
    async with scripted_nats() as server, transport_of(server, Role.GATEWAY) as caller, transport_of(server, Role.WORKER) as worker:
        link = await caller.dial(peer_of(worker))
        link.close(errors.LinkLost("for another reason"))
        await until(lambda: not worker.links(), seconds=30)
        assert not worker.trust.is_revoked
        await caller.dial(peer_of(worker))
        for revoked in caller.trust.on_revoked:
            revoked(frozenset({worker.me.node}))
        await until(lambda: worker.trust.is_revoked, seconds=30)
        assert (worker.links(), caller.trust.is_revoked) == ([], False)
