"""NATS behind HTTPS: through our own HTTP port with TLS, and through an HTTP proxy of the network that the node is in."""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shared import errors
from shared.identity import node_keys
from shared.node import http_server
from shared.node.http_tunnel import TunnelTarget
from shared.node.lifecycle import background
from shared.node.settings import NodeSettings
from shared.telemetry import logs
from shared.transports.nats import web_socket
from shared.transports.nats.login import NatsFiles
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.web_frames import FrameReader
from shared.types import Role
from tests.shared.transports.nats import test_web_frames
from tests.shared.transports.nats.test_tls import make_certificate
from tests.shared.transports.nats.test_web_frames import frame
from tests.testnet import MESH, NatsServer, until

ANSWER_SECONDS = 10


class Settings(NodeSettings, frozen=True, kw_only=True):
    to: TunnelTarget

    @property
    def tunnel(self) -> TunnelTarget:
        return self.to


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


async def _nothing(scope: http_server.Scope, _receive: http_server.Receive, send: http_server.Send) -> None:
    await http_server.respond(send, 404, b"nothing is here", "text/plain")


class WebPort(NamedTuple):
    port: int
    stop: Callable[[], None]


@asynccontextmanager
async def web(to: int, folder: Path) -> AsyncIterator[WebPort]:
    """Our HTTP port over TLS, which passes /mesh on to a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        settings = Settings(
            node_key_file=Path("/nowhere"), to=TunnelTarget("/mesh", "127.0.0.1", to), tls_cert_file=folder / "cert.pem",
            tls_key_file=folder / "key.pem", drain_seconds=1,
        )  # fmt: skip
        server = http_server.HttpServer(_nothing, sock, settings)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run())
            try:
                yield WebPort(sock.getsockname()[1], server.stop)
            finally:
                server.stop()


def client_of(server: NatsServer, url: str, role: Role = Role.GATEWAY, **files: Path) -> NatsClient:
    return NatsClient(url, node_keys.load(server.key(f"{role}", role)), name="test", files=NatsFiles(**files))


@asynccontextmanager
async def connected(client: NatsClient) -> AsyncIterator[NatsClient]:
    await client.connect(deadline_seconds=ANSWER_SECONDS)
    async with background() as tasks:
        tasks.create_task(client.run())
        try:
            yield client
        finally:
            await client.close()


class Pair:
    """Two nodes that reach NATS by the same URL."""

    def __init__(self, sender: NatsClient, receiver: NatsClient) -> None:
        self.sender = sender
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        receiver.subscribe(f"aimesh.{MESH}.event.>", lambda message: self._heard.put_nowait(message.payload))
        self.receiver = receiver

    async def passes(self, payload: bytes) -> bool:
        async with asyncio.timeout(ANSWER_SECONDS):
            await self.receiver.flush()
            self.sender.publish(f"aimesh.{MESH}.event.gateway.{self.sender._login.node}.x", payload)
            return await self._heard.get() == payload


@asynccontextmanager
async def pair(server: NatsServer, url: str, **files: Path) -> AsyncIterator[Pair]:
    async with (
        connected(client_of(server, url, **files)) as sender,
        connected(client_of(server, url, Role.METRICS, **files)) as receiver,
    ):
        yield Pair(sender, receiver)


async def refusal(client: NatsClient) -> errors.Unavailable:
    with pytest.raises(errors.Unavailable) as refused:
        await client.connect(deadline_seconds=0.5)
    return refused.value


def pin_of(folder: Path) -> str:
    found = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    return web_socket.pin_of(found.public_bytes(Encoding.DER))


async def test_a_private_ca_or_a_pinned_key_is_trusted(server: NatsServer, tmp_path: Path) -> None:
    make_certificate(tmp_path, "127.0.0.1")
    async with web(server.web_port, tmp_path) as port:
        url = f"wss://127.0.0.1:{port.port}/mesh"
        async with pair(server, url, ca=tmp_path / "cert.pem") as both:
            assert await both.passes(bytes(1_500_000))
        async with pair(server, f"{url}?pin={pin_of(tmp_path)}") as both:
            assert await both.passes(b"hi")
        assert "no certificate that is valid here" in (await refusal(client_of(server, url))).message
        wrong = await refusal(client_of(server, f"{url}?pin={'A' * 43}"))
        assert "not the one that was pinned" in wrong.message


async def test_a_renewed_certificate_has_the_pinned_key(server: NatsServer, tmp_path: Path) -> None:
    key = make_certificate(tmp_path, "127.0.0.1")
    pin, old = pin_of(tmp_path), (tmp_path / "cert.pem").read_bytes()
    make_certificate(tmp_path, "127.0.0.1", key)
    assert (tmp_path / "cert.pem").read_bytes() != old
    async with web(server.web_port, tmp_path) as port, pair(server, f"wss://127.0.0.1:{port.port}/mesh?pin={pin}") as both:
        assert await both.passes(b"hi")


async def test_only_the_address_that_we_saw_reaches_nats(server: NatsServer, tmp_path: Path) -> None:
    """A node cannot say where it comes from: auth counts what unknown keys do by address."""
    make_certificate(tmp_path, "127.0.0.1")
    async with web(server.web_port, tmp_path) as port:
        context = web_socket._trusting(None, "x")
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        forged = b"GET /mesh HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        writer.write(forged + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            info = await reader.readuntil(b"\r\n")
        assert b'"client_ip":"127.0.0.1"' in info
        writer.transport.abort()


async def test_when_the_port_stops_a_node_moves_to_the_next(server: NatsServer, tmp_path: Path) -> None:
    make_certificate(tmp_path, "127.0.0.1")
    async with web(server.web_port, tmp_path) as first, web(server.web_port, tmp_path) as second:
        urls = ",".join(f"wss://127.0.0.1:{each.port}/mesh?pin={pin_of(tmp_path)}" for each in (first, second))
        async with pair(server, urls) as both:
            used = both.sender._last
            assert used is not None
            stopped, other = (first, second) if used.port == first.port else (second, first)
            stopped.stop()

            def use_other() -> bool:
                used = [client._last for client in (both.sender, both.receiver) if client.connected]
                return [server.port for server in used if server is not None] == [other.port] * 2

            await until(use_other, seconds=20)
            assert await both.passes(b"hi")


async def test_the_faster_way_is_taken_and_the_other_when_it_is_closed(server: NatsServer, tmp_path: Path) -> None:
    make_certificate(tmp_path, "127.0.0.1")
    async with web(server.web_port, tmp_path) as port:
        web_url = f"wss://127.0.0.1:{port.port}/mesh?pin={pin_of(tmp_path)}"
        async with connected(client_of(server, f"{web_url},{server.url}")) as client:
            assert client._last is not None
            assert not client._last.is_web
        async with connected(client_of(server, f"{web_url},nats://127.0.0.1:1")) as client:
            assert client._last is not None
            assert client._last.is_web


async def test_nats_is_away_behind_the_port(server: NatsServer, tmp_path: Path) -> None:
    make_certificate(tmp_path, "127.0.0.1")
    async with web(1, tmp_path) as port:
        why = await refusal(client_of(server, f"wss://127.0.0.1:{port.port}/mesh?pin={pin_of(tmp_path)}"))
        assert why.message.startswith("no NATS server answers at wss://127.0.0.1:")
        assert "set HTTPS_PROXY" in why.hint
        assert "pin=" not in why.message


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A port that answers each request so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    served = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with served:
        yield served.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nServer: Portal/2\r\nContent-Type: text/html\r\n\r\n<h1>Log in</h1>",
            "the server (Portal/2) at ws://127.0.0.1:PORT/mesh answered with status 200 instead of 101",
            id="a captive portal",
        ),
        pytest.param(
            b"HTTP/1.1 426 Upgrade Required\r\nServer: nginx\r\n\r\n",
            "the server (nginx) at ws://127.0.0.1:PORT/mesh answered with status 426 instead of 101",
            id="a proxy that strips Upgrade",
        ),
        pytest.param(b"SSH-2.0\r\n\r\n", "the server at ws://127.0.0.1:PORT/mesh doesn't speak HTTP", id="another protocol"),
        pytest.param(b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "no NATS server answers at ws://127.0.0.1:PORT/mesh", id="a server that is away"),
        pytest.param(b"", "no NATS server answers at ws://127.0.0.1:PORT/mesh", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "no NATS server answers at ws://127.0.0.1:PORT/mesh", id="no end"),
    ],
)
async def test_who_refuses_is_named(server: NatsServer, answer: bytes, why: str) -> None:
    async with answering(answer) as port:
        refused = await refusal(client_of(server, f"ws://127.0.0.1:{port}/mesh"))
    assert refused.message == why.replace("PORT", str(port))


@asynccontextmanager
async def opened(sent: bytes) -> AsyncIterator[int]:
    """A port that opens each WebSocket, sends these bytes, and says nothing more."""
    left: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            key = next(line.partition(": ")[2] for line in head.splitlines() if line.startswith("Sec-WebSocket-Key"))
            accepted = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n\r\n"
            writer.write(accepted % test_web_frames.accepted(key) + sent)
            await writer.drain()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as served:
        yield served.sockets[0].getsockname()[1]
        for writer in left:
            writer.transport.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        pytest.param(b"", "is open, but nothing comes through: a proxy holds it back", id="a proxy that buffers"),
        pytest.param(frame(b"x" * 200_000), "no NATS server answers at", id="a line without an end"),
        pytest.param(bytes((0x82, 127)) + (1 << 26).to_bytes(8, "big") + b"x" * 200_000, "no NATS server", id="a frame without an end"),
        pytest.param(frame(b"INFO {}\r\n", opcode=1), "no NATS server answers at", id="text"),
        pytest.param(frame(b"", opcode=8), "no NATS server answers at", id="a close"),
    ],
)
async def test_what_is_no_nats_behind_a_websocket_is_left(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, sent: bytes, why: str
) -> None:
    monkeypatch.setattr(web_socket, "_SILENT_SECONDS", 0.2)
    async with opened(sent) as port:
        assert why in (await refusal(client_of(server, f"ws://127.0.0.1:{port}/mesh"))).message


async def test_a_node_that_starts_says_at_once_who_refuses(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(logs, "_write", lambda _, event, fields: said.append(fields.get("why")))
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n<h1>Log in</h1>") as port, asyncio.TaskGroup() as tasks:
        url = f"ws://127.0.0.1:{port}/mesh"
        starting = tasks.create_task(client_of(server, url).connect(deadline_seconds=ANSWER_SECONDS))
        await until(lambda: said)
        assert said == [f"the server at {url} answered with status 200 instead of 101"]
        starting.cancel()


class Relay:
    """Passes a WebSocket on to a NATS server, and each byte that comes back in a frame of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.from_client = 0
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._port)
        there.write(await reader.readuntil(b"\r\n\r\n"))
        writer.write(await there_reader.readuntil(b"\r\n\r\n"))
        await asyncio.gather(self._count(reader, there), self._cut(there_reader, writer))
        self.open -= 1

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.from_client += 1
            writer.write(data)
        writer.close()

    async def _cut(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader()
        while data := await reader.read(65536):
            writer.write(b"".join(frame(bytes((each,))) for each in frames.feed(data)))
        writer.close()


async def test_frames_of_one_byte_and_a_connection_that_is_never_idle(server: NatsServer) -> None:
    relay = Relay(server.web_port)
    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as served:
        url = f"ws://127.0.0.1:{served.sockets[0].getsockname()[1]}/mesh"
        async with pair(server, url) as both:
            assert await both.passes(bytes(range(256)) * 100)
            before = relay.from_client
            # Without a message, so that no proxy takes it for unused.
            await until(lambda: relay.from_client >= before + 6, seconds=ANSWER_SECONDS)
        await until(lambda: not relay.open)


class Proxy:
    """An HTTP proxy that asks for a password."""

    def __init__(self, password: str) -> None:
        self.wanted = f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"
        self.passed: list[str] = []
        self.refuses = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if f"Proxy-Authorization: {self.wanted}\r\n" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        elif self.refuses:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        else:
            self.passed.append(head.split()[1])
            _, _, port = head.split()[1].rpartition(":")
            there = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pipe(reader, there[1]), _pipe(there[0], writer))
            return
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_an_http_proxy_with_a_password_is_passed(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tmp_path, "mesh.example.org")
    proxy = Proxy("s@cret")
    async with web(server.web_port, tmp_path) as port, await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as listening:
        there = listening.sockets[0].getsockname()[1]
        # Only the proxy resolves the name.
        url = f"wss://mesh.example.org:{port.port}/mesh"
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s%40cret@127.0.0.1:{there}")
        async with pair(server, url, ca=tmp_path / "cert.pem") as both:
            assert await both.passes(b"hi")
        assert proxy.passed == [f"mesh.example.org:{port.port}"] * 2
        proxy.refuses = True
        refused = await refusal(client_of(server, url, ca=tmp_path / "cert.pem"))
        assert refused.message == f"the HTTP proxy at 127.0.0.1:{there} refuses connections to mesh.example.org:{port.port} (status 403)"
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{there}")
        refused = await refusal(client_of(server, url, ca=tmp_path / "cert.pem"))
        assert refused.message == f"the HTTP proxy at 127.0.0.1:{there} asks for user and password"
        monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:1")
        refused = await refusal(client_of(server, url, ca=tmp_path / "cert.pem"))
        assert refused.message == "the HTTP proxy at 127.0.0.1:1 does not answer: Connect call failed ('127.0.0.1', 1)"


def test_which_hosts_are_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert web_socket.find_proxy("mesh.example.org") is None
    monkeypatch.setenv("https_proxy", "proxy:3128")
    monkeypatch.setenv("no_proxy", "lab.example.org")
    found = web_socket.find_proxy("mesh.example.org")
    assert found is not None
    assert (found.hostname, found.port) == ("proxy", 3128)
    assert web_socket.find_proxy("gpu.lab.example.org") is None
    assert web_socket.find_proxy("127.0.0.1") is None
    for bad in ("socks5://me:secret@proxy:1080", "http://proxy:port", "http://", "http://proxy:99999"):
        monkeypatch.setenv("https_proxy", bad)
        with pytest.raises(errors.Unavailable, match=r"^HTTPS_PROXY is not an address such as http://proxy\.example\.org:3128$"):
            web_socket.find_proxy("mesh.example.org")
