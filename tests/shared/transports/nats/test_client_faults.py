"""A script of faults for the NATS client: after each it is connected once, gets each message once, and leaves nothing open when closed."""

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from shared import errors
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.nats.login import NatsFiles
from shared.transports.nats.nats_client import NatsClient
from shared.types import Role
from tests.shared.transports.nats.real_servers import Operator, cluster, server_with
from tests.shared.transports.nats.scripted_nats import ScriptedConnection, ScriptedNats, scripted_nats
from tests.testnet import MESH, NatsServer, until

RECONNECTS = 1_000
_numbers = itertools.count()

Fault = Callable[[Path], Awaitable[None]]
FAULTS: dict[str, Fault] = {}


@asynccontextmanager
async def client_of(url: str, *, seed: bytes | None = None, creds: Path | None = None, leads: bool = False) -> AsyncIterator[NatsClient]:
    key, files = node_keys.NodeKey(seed or node_keys.new_seed()), NatsFiles(creds=creds)
    client = NatsClient(url, key, name="test", files=files, leads=leads)
    await client.connect(deadline_seconds=20)
    async with background() as tasks:
        tasks.create_task(client.run())
        try:
            yield client
        finally:
            await client.close()


def fault(name: str) -> Callable[[Fault], Fault]:
    def add(script: Fault) -> Fault:
        FAULTS[name] = script
        return script

    return add


async def is_as_good_as_new(client: NatsClient, heard: list[bytes], subject: str = "a.b") -> None:
    """Check that the client receives what it publishes, once. While it reconnects a message may be lost, so try until one arrives."""
    deadline = asyncio.get_running_loop().time() + 60
    while True:
        payload = b"after the fault %d" % next(_numbers)
        with suppress(errors.Unavailable):
            client.publish(subject, payload)
            await client.flush(deadline_seconds=1)
        if payload in heard:
            break
        assert asyncio.get_running_loop().time() < deadline, "it did not come back"
        await asyncio.sleep(0.01)
    await client.flush(deadline_seconds=30)
    assert heard.count(payload) == 1


async def only_one_is_open(server: ScriptedNats, client: NatsClient) -> None:
    await until(lambda: len(server.connections) == 1, seconds=10)
    await client.close()
    await until(lambda: not server.connections, seconds=10)


# --- late answers -------------------------------------------------------------------------------------------------------


@fault("slow PONG")
async def slow_pong(folder: Path) -> None:
    async with scripted_nats() as server, client_of(server.url) as client:
        heard: list[bytes] = []
        client.subscribe("a.b", lambda message: heard.append(message.payload))
        await client.flush(deadline_seconds=30)
        server.holds = lambda connection: True
        client.publish("a.b", b"meanwhile")
        flushing = asyncio.ensure_future(client.flush(deadline_seconds=30))
        await until(lambda: heard == [b"meanwhile"], seconds=10)
        assert not flushing.done()
        server.release()
        await flushing
        await is_as_good_as_new(client, heard)
        await only_one_is_open(server, client)


@fault("slow login")
async def slow_login(folder: Path) -> None:
    async with scripted_nats() as server:
        # The first login never gets an answer.
        server.holds = lambda connection: server.accepted == 1
        async with client_of(server.url) as client:
            heard: list[bytes] = []
            client.subscribe("a.b", lambda message: heard.append(message.payload))
            await is_as_good_as_new(client, heard)
            await only_one_is_open(server, client)


# --- broken connections -------------------------------------------------------------------------------------------------


def cut_at(verb: str, *, first_login: bool) -> Fault:
    """Cut a connection once instead of answering ``verb``: during the first login, or during the one after a loss."""

    async def script(folder: Path) -> None:
        async with scripted_nats() as server:
            done: list[str] = []

            def cuts(connection: ScriptedConnection, came: str) -> bool:
                hit = came == verb and not done and (first_login or server.accepted > 1)
                if hit:
                    done.append(came)
                return hit

            if first_login:
                server.cuts = cuts
            async with client_of(server.url) as client:
                heard: list[bytes] = []
                client.subscribe("a.b", lambda message: heard.append(message.payload))
                if not first_login:
                    await client.flush(deadline_seconds=30)
                    server.cuts = cuts
                    server.connections[0].cut()
                await is_as_good_as_new(client, heard)
                assert done == [verb]
                await only_one_is_open(server, client)

    return script


for each in ("INFO", "CONNECT", "PING"):
    FAULTS[f"cut at {each} of the first login"] = cut_at(each, first_login=True)
for each in ("INFO", "CONNECT", "PING", "SUB", "PUB"):
    FAULTS[f"cut at {each} of a reconnect"] = cut_at(each, first_login=False)


@fault("cut inside a message")
async def cut_inside_a_message(folder: Path) -> None:
    async with scripted_nats() as server, client_of(server.url) as client:
        heard: list[bytes] = []
        client.subscribe("a.b", lambda message: heard.append(message.payload))
        await client.flush(deadline_seconds=30)
        whole = b"MSG a.b 1 5\r\nwhole\r\n"
        for at in range(1, len(whole)):
            connection = server.connections[0]
            connection.send(whole[:at])
            await connection.writer.drain()
            connection.writer.close()
            await until(lambda gone=connection: gone not in server.connections, seconds=10)  # type: ignore[misc]
            await until(lambda: len(server.connections) == 1 and bool(server.connections[0].subscriptions), seconds=10)
        assert b"whole" not in heard
        await is_as_good_as_new(client, heard)
        await only_one_is_open(server, client)


@fault("killed server of a cluster of three")
async def killed_server(folder: Path) -> None:
    with cluster(folder, 3) as servers:
        async with client_of(servers[0].url) as client:
            heard: list[bytes] = []
            client.subscribe("a.b", lambda message: heard.append(message.payload))
            await is_as_good_as_new(client, heard)
            # The client was given one address and has learned the others.
            servers[0].kill()
            await is_as_good_as_new(client, heard)


@fault("lame duck")
async def lame_duck(folder: Path) -> None:
    async with scripted_nats() as first, scripted_nats() as second, client_of(first.url) as client:
        heard: list[bytes] = []
        client.subscribe("a.b", lambda message: heard.append(message.payload))
        await client.flush(deadline_seconds=30)
        first.cuts = lambda connection, verb: verb == "INFO"  # it accepts nobody
        first.tell(connect_urls=[f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}"], ldm=True)
        # The client leaves before the server closes anything.
        await until(lambda: bool(second.connections) and not first.connections, seconds=10)
        await is_as_good_as_new(client, heard)
        await only_one_is_open(second, client)


@fault("slow consumer")
async def slow_consumer(folder: Path) -> None:
    server = server_with(folder, 'max_pending: 256KB\nmax_payload: 200KB\nwrite_deadline: "1s"')
    server.start()
    try:
        async with client_of(server.url) as client:
            heard: list[bytes] = []
            client.subscribe("a.>", lambda message: heard.append(message.payload))
            await client.flush(deadline_seconds=30)
            # This thread waits until the flood ends, so the client reads nothing.
            flood = threading.Thread(target=_flood, args=(server.port, 200, 150_000))
            flood.start()
            flood.join()
            await until(lambda: client.reconnects > 0 or not client.connected, seconds=20)
            await is_as_good_as_new(client, heard)
    finally:
        server.kill()


def _flood(port: int, count: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b'CONNECT {"verbose":false}\r\n')
        for _ in range(count):
            sock.sendall(b"PUB a.flood %d\r\n%b\r\n" % (size, bytes(size)))
        sock.sendall(b"PING\r\n")
        answer = b""
        while b"PONG" not in answer:
            answer += sock.recv(4096)


@fault("1,000 reconnects under load")
async def many_reconnects(folder: Path) -> None:
    async with scripted_nats() as server, client_of(server.url, leads=True) as client:
        heard: list[bytes] = []
        client.subscribe("a.b", lambda message: heard.append(message.payload))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 90
        sent = 0
        while server.accepted <= RECONNECTS:
            for connection in list(server.connections):
                if connection.subscriptions:
                    # With messages in flight in both directions.
                    for _ in range(5):
                        sent += 1
                        client.publish("a.b", b"load %d" % sent)
                    connection.deliver("1", "a.b", "", b"", b"load too")
                    connection.cut()
            assert loop.time() < deadline, f"{server.accepted} connections in 90 s"
            await asyncio.sleep(0)
        await is_as_good_as_new(client, heard)
        load = [each for each in heard if each.startswith(b"load ") and each != b"load too"]
        assert len(load) == len(set(load))
        await only_one_is_open(server, client)


# --- refusals -----------------------------------------------------------------------------------------------------------


@fault("expired key")
async def expired_key(folder: Path) -> None:
    operator = Operator()
    server = server_with(folder, operator.configuration)
    server.start()
    try:
        async with client_of(server.url, creds=operator.credentials(folder / "a.creds", seconds=2)) as client:
            await until(lambda: client.trouble is not None and "expired" in client.trouble.message, seconds=20)
    finally:
        server.kill()


@fault("permission error")
async def permission_error(folder: Path) -> None:
    server = NatsServer(folder)
    seed = server.key("client", Role.CLIENT).read_bytes()
    server.start()
    try:
        async with client_of(server.url, seed=seed) as client:
            refused: list[str] = []
            client.on_refused = refused.append
            client.publish(f"aimesh.{MESH}.worker.X.auth.Y", b"posing as auth")
            await client.flush(deadline_seconds=30)
            await until(lambda: any("permissions violation" in words for words in refused), seconds=10)
            assert client.connected
    finally:
        server.kill()


@fault("oversized message")
async def oversized_message(folder: Path) -> None:
    server = server_with(folder, "max_payload: 64KB")
    server.start()
    try:
        async with client_of(server.url) as client:
            heard: list[bytes] = []
            client.subscribe("a.b", lambda message: heard.append(message.payload))
            with pytest.raises(errors.TooLarge, match="limit"):
                client.publish("a.b", bytes(64 * 1024 + 1))
            client.publish("a.b", bytes(64 * 1024))
            await is_as_good_as_new(client, heard)
            assert len(heard[0]) == 64 * 1024
            assert client.reconnects == 0
    finally:
        server.kill()


@pytest.mark.parametrize("name", FAULTS)
async def test_the_client_recovers_after_the_fault(name: str, tmp_path: Path) -> None:
    await FAULTS[name](tmp_path)
