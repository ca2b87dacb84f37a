"""The client with a real nats-server, and nats-py as the independent other side."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest

from shared import errors
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.server_connection import NatsMessage
from shared.types import Role
from tests.testnet import MESH, NatsServer, until


@pytest.fixture(params=["nats", "ws"])
def server(request: pytest.FixtureRequest) -> Iterator[NatsServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        server.our_url = server.url if request.param == "nats" else server.web_url
        server.start()
        yield server
        server.kill()


@asynccontextmanager
async def connected(server: NatsServer, role: Role, key: Path | None = None) -> AsyncIterator[NatsClient]:
    client = NatsClient(server.our_url, node_keys.load(key or server.key(f"{role}-key", role)), name="test")
    await client.connect(deadline_seconds=5)
    async with background() as tasks:
        tasks.create_task(client.run())
        try:
            yield client
        finally:
            await client.close()


async def test_messages_are_exchanged_with_nats_py(server: NatsServer) -> None:
    seed = server.key("metrics-key", Role.METRICS).read_text()
    async with connected(server, Role.GATEWAY) as ours:
        theirs = await nats.connect(server.url, nkeys_seed_str=seed)
        arrived: asyncio.Queue[nats.aio.msg.Msg] = asyncio.Queue()
        await theirs.subscribe(f"aimesh.{MESH}.event.>", cb=arrived.put)
        # nats-py's PING may overtake the SUB that waits for its flusher; a second PING cannot.
        await theirs.flush()
        await theirs.flush()
        node = node_keys.load(server.folder / "gateway-key.nk").id
        ours.publish(f"aimesh.{MESH}.event.gateway.{node}.x", b"plain")
        ours.publish(f"aimesh.{MESH}.event.gateway.{node}.x", bytes(1_500_000))
        ours.publish(f"aimesh.{MESH}.event.gateway.{node}.x", b"with", headers={"a": "b"})
        assert (await arrived.get()).data == b"plain"
        assert (await arrived.get()).data == bytes(1_500_000)
        third = await arrived.get()
        assert (third.data, third.headers) == (b"with", {"a": "b"})
        heard: list[NatsMessage] = []
        sid = ours.subscribe(f"aimesh.{MESH}.who", heard.append)
        await ours.flush()
        await theirs.publish(f"aimesh.{MESH}.who", b"?")
        await until(lambda: [message.payload for message in heard] == [b"?"])
        ours.unsubscribe(sid)
        await ours.flush()
        await theirs.publish(f"aimesh.{MESH}.who", b"again")
        await theirs.flush()
        await ours.flush()
        assert len(heard) == 1
        await theirs.close()


async def test_an_unknown_key_is_refused_with_a_hint(server: NatsServer) -> None:
    client = NatsClient(server.our_url, node_keys.NodeKey(node_keys.new_seed()), name="stranger")
    with pytest.raises(errors.Unavailable, match="refused this node's key") as refused:
        await client.connect(deadline_seconds=0.3)
    assert "aicli admin nodes refusals" in refused.value.hint


async def test_an_unreachable_server_is_reported_without_the_password() -> None:
    client = NatsClient("nats://user:secret@127.0.0.1:1", node_keys.NodeKey(node_keys.new_seed()), name="x")
    with pytest.raises(errors.Unavailable, match=r"no NATS server answers at (nats|ws)://127\.0\.0\.1:1") as nobody:
        await client.connect(deadline_seconds=0.2)
    assert "secret" not in str(nobody.value)


async def test_a_forbidden_publish_leaves_the_connection_open(server: NatsServer) -> None:
    async with connected(server, Role.CLIENT) as client:
        told: list[str] = []
        client.on_refused = told.append
        client.publish(f"aimesh.{MESH}.worker.X.auth.Y", b"posing as auth")
        await client.flush()
        assert client.connected
        assert ["aimesh.test.worker.x.auth.y" in words for words in told] == [True]


async def test_a_restarted_server_gets_every_subscription_again(server: NatsServer) -> None:
    told: list[bool] = []
    async with connected(server, Role.AUTH) as client:
        client.on_connection = told.append
        heard: list[NatsMessage] = []
        client.subscribe(f"aimesh.{MESH}.who", heard.append)
        await client.flush()
        server.kill()
        await until(lambda: told == [False])
        assert not client.connected
        client.publish(f"aimesh.{MESH}.who", b"lost")
        with pytest.raises(errors.Unavailable, match=r"no NATS server answers at (nats|ws)://"):
            await client.flush()
        server.start()
        await until(lambda: told == [False, True])
        client.publish(f"aimesh.{MESH}.who", b"back")
        await until(lambda: [message.payload for message in heard] == [b"back"])
        assert client.reconnects == 1


async def test_one_reachable_server_of_several_is_enough(server: NatsServer) -> None:
    key = server.key("auth-key", Role.AUTH)
    client = NatsClient(f"nats://127.0.0.1:1, {server.our_url}", node_keys.load(key), name="x")
    await client.connect(deadline_seconds=2)
    await client.flush()
    await client.close()
    assert not client.connected
