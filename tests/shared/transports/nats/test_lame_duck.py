"""A server announces that it is about to close: the client moves to another one without losing a message."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.link import LocalNode
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from shared.transports.nats_link import NatsTransport
from shared.types import Peer, Role
from tests.shared.transports.nats.real_servers import cluster
from tests.shared.transports.nats.scripted_nats import ScriptedConnection, ScriptedNats, scripted_nats
from tests.testnet import MESH, until


def refuse_newcomers(_connection: ScriptedConnection, verb: str) -> bool:
    """A server in lame duck mode listens no more."""
    return verb == "INFO"


@asynccontextmanager
async def hearing(server: ScriptedNats) -> AsyncIterator[tuple[NatsClient, list[NatsMessage]]]:
    """Yield a client of this server, which runs, and what it hears on a.b."""
    client = NatsClient(server.url, node_keys.NodeKey(node_keys.new_seed()), name="test")
    heard: list[NatsMessage] = []
    client.subscribe("a.b", heard.append)
    await client.connect(deadline_seconds=30)
    async with background() as tasks:
        tasks.create_task(client.run())
        yield client, heard
        await client.close()


async def test_the_client_learns_of_a_server_and_moves_to_it_without_a_gap() -> None:
    async with scripted_nats() as first, scripted_nats() as second:
        client = NatsClient(first.url, node_keys.NodeKey(node_keys.new_seed()), name="test")
        told: list[bool] = []
        heard: list[NatsMessage] = []
        client.on_connection = told.append
        client.subscribe("a.b", heard.append, queue="q")
        await client.connect(deadline_seconds=30)
        async with background() as tasks:
            tasks.create_task(client.run())
            first.cuts = refuse_newcomers
            first.tell(connect_urls=[f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"], ldm=True)
            await until(lambda: bool(second.connections) and not first.connections, seconds=20)
            client.publish("a.b", b"over the second")
            await client.flush(deadline_seconds=30)
            assert [each.payload for each in heard] == [b"over the second"]
            assert told == []
            assert client.reconnects == 0
            await client.close()


async def test_messages_that_both_connections_have_are_delivered_once_and_in_order() -> None:
    async with scripted_nats() as first, scripted_nats() as second, hearing(first) as (client, heard):
        [old] = first.connections
        # Hold the answer to the PING that follows the UNSUB.
        first.holds = lambda connection: not connection.subscriptions
        first.cuts = refuse_newcomers
        first.tell(connect_urls=[f"127.0.0.1:{second.port}"], ldm=True)
        await until(lambda: old.held_pongs > 0, seconds=20)
        for payload in (b"2", b"2", b"3", b"4", b"4"):
            second.connections[0].deliver("1", "a.b", "", b"", payload)
        for payload in (b"1", b"2", b"2", b"3"):
            old.deliver("1", "a.b", "", b"", payload)
        first.release()
        await until(lambda: len(heard) >= 6, seconds=20)
        await client.flush(deadline_seconds=30)
        assert [each.payload for each in heard] == [b"1", b"2", b"2", b"3", b"4", b"4"]


async def test_while_it_moves_producers_wait_and_new_subscriptions_are_made() -> None:
    async with scripted_nats() as first, scripted_nats() as second, hearing(first) as (client, heard):
        [old] = first.connections
        # Hold the answer to the PING that follows the UNSUB.
        first.holds = lambda connection: not connection.subscriptions
        first.cuts = refuse_newcomers
        first.tell(connect_urls=[f"127.0.0.1:{second.port}"], ldm=True)
        await until(lambda: old.held_pongs > 0, seconds=20)
        # A message by the second server could overtake those by the first.
        assert client.is_full
        client.subscribe("c.d", heard.append)
        first.release()
        await until(lambda: not first.connections, seconds=20)
        assert not client.is_full
        client.publish("c.d", b"over the second")
        await client.flush(deadline_seconds=30)
        assert [each.payload for each in heard] == [b"over the second"]


async def test_a_new_server_that_dies_during_the_move_is_not_used() -> None:
    async with scripted_nats() as first, scripted_nats() as second, hearing(first) as (client, heard):
        [old] = first.connections
        # Hold the answer to the PING that follows the UNSUB.
        first.holds = lambda connection: connection is old and not connection.subscriptions
        first.cuts = refuse_newcomers
        first.tell(connect_urls=[f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"], ldm=True)
        await until(lambda: old.held_pongs > 0, seconds=20)
        new = client._next
        assert new is not None
        second.connections[0].cut()
        await until(lambda: not new.is_connected, seconds=10)
        first.info["ldm"] = False
        first.cuts = lambda connection, verb: False
        first.release()
        await until(lambda: client.reconnects == 1, seconds=20)
        await client.flush(deadline_seconds=30)
        client.publish("a.b", b"after it")
        await client.flush(deadline_seconds=30)
        assert [each.payload for each in heard] == [b"after it"]


async def test_a_client_that_knows_no_other_server_stays() -> None:
    async with scripted_nats() as server, hearing(server) as (client, heard):
        server.cuts = refuse_newcomers
        server.tell(ldm=True)
        await client.flush(deadline_seconds=30)
        client.publish("a.b", b"still here")
        await client.flush(deadline_seconds=30)
        assert [each.payload for each in heard] == [b"still here"]
        assert len(server.connections) == 1


async def test_a_mesh_link_survives_its_server_in_a_real_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as servers:
        me = [LocalNode(MESH, role, node_keys.NodeKey(node_keys.new_seed()), "test") for role in (Role.GATEWAY, Role.WORKER)]
        caller, worker = (NatsTransport(each, servers[0].url) for each in me)
        worker.on_link = lambda link: None
        lost: list[bool] = []
        caller.on_connection = worker.on_connection = lost.append
        for transport in (caller, worker):
            await transport.connect(deadline_seconds=30)
            await transport.nats.flush(deadline_seconds=30)
        async with background() as tasks:
            for transport in (caller, worker):
                tasks.create_task(transport.run())
            link = await caller.dial(peer_of(worker))
            await until(lambda: len(caller.nats._servers.in_order()) == 3, seconds=20)
            servers[0].signal(signal.SIGUSR2)
            await until(lambda: all(str(servers[0].port) not in server_of(each) for each in (caller, worker)), seconds=20)
            servers[0].kill()
            before = worker.links()[0]
            again = await caller.dial(peer_of(worker))
            assert again.closed is None
            assert (link.closed, before.closed, lost) == (None, None, [])
            for transport in (caller, worker):
                await transport.close()


def peer_of(transport: NatsTransport) -> Peer:
    return Peer(transport.me.role, transport.me.node)


def server_of(transport: NatsTransport) -> str:
    connection = transport.nats._connection
    return "" if connection is None else str(connection.server)
