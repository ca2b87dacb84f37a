"""Raw requests to a proxy: hundreds of streams cost the test process little, and tests can send broken requests."""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.deploy.proxies.programs import SITE, Proxy

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
#: The text in an event of /v1/chat/completions.
_TEXT = re.compile(rb'"content":"([^"]+)"')


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Stream:
    """A streamed chat: its words so far, and how it ended."""

    words: list[str] = field(default_factory=list)
    #: When each word arrived.
    times: list[float] = field(default_factory=list)
    status: int = 0
    #: The last chunk has arrived, after the event that ends the answer.
    complete: bool = False
    #: Why the connection ended before that.
    broken: str = ""
    #: Set at the first word.
    begun: asyncio.Event = field(default_factory=asyncio.Event)


def prompt(words: int) -> str:
    return " ".join(f"w{number}" for number in range(words))


def chat(key: str, words: int, *, stream: bool = True) -> bytes:
    content = json.dumps({"model": "echo", "stream": stream, "messages": [{"role": "user", "content": prompt(words)}]})
    return post("/v1/chat/completions", key, content.encode())


def post(path: str, key: str, body: bytes, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: {SITE}\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n{headers}"
    if "transfer-encoding" in headers:
        return f"{head}\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {SITE}\r\n{headers}connection: close\r\n\r\n".encode()


def offer(headers: str = "") -> bytes:
    """Return the head that offers a WebSocket for /mesh."""
    key = f"sec-websocket-version: 13\r\nsec-websocket-key: {'A' * 22}==\r\n"
    return f"GET /mesh HTTP/1.1\r\nhost: {SITE}\r\nupgrade: websocket\r\nconnection: upgrade\r\n{key}{headers}\r\n".encode()


async def ask(proxy: Proxy, request: bytes, address: str = "127.0.0.1") -> Answer:
    """Send one request on a new connection. The proxy may answer before it has read all of it."""
    async with asyncio.timeout(30):
        reader, writer = await proxy.connect(address)
        try:
            writer.write(request)
            status, headers = await _read_head(reader)
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join([chunk async for chunk in _chunks(reader)])
            elif "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
            else:
                body = b"" if status == 101 else await reader.read()
            return Answer(status, headers, body)
        finally:
            writer.transport.abort()


async def listen_to(proxy: Proxy, key: str, words: int, stream: Stream, tls: ssl.SSLContext | None = None) -> Stream:
    """Run a streamed chat until it completes or breaks."""
    stream.broken = ""
    try:
        reader, writer = await proxy.connect(tls=tls)
        try:
            writer.write(chat(key, words))
            stream.status, headers = await _read_head(reader)
            if stream.status != 200:
                raise ValueError(await reader.readexactly(int(headers.get("content-length", 0))))
            last = b""
            async for chunk in _chunks(reader):
                last = chunk
                for word in _TEXT.findall(chunk):
                    stream.words += word.decode().split()
                    stream.times.append(asyncio.get_running_loop().time())
                    stream.begun.set()
            stream.complete = last.endswith(b"data: [DONE]\n\n")
            if not stream.complete:
                stream.broken = last[-300:].decode(errors="replace")
        finally:
            writer.transport.abort()
    except (OSError, EOFError, ValueError) as error:
        stream.broken = repr(error)
    return stream


@asynccontextmanager
async def web_socket(proxy: Proxy, headers: str = "", address: str = "127.0.0.1") -> AsyncIterator[bytes]:
    """Open a WebSocket at /mesh; yield the beginning of the first frame."""
    reader, writer = await proxy.connect(address)
    try:
        async with asyncio.timeout(30):
            writer.write(offer(headers))
            status, _ = await _read_head(reader)
            assert status == 101, status
            yield await reader.readexactly(16)
    finally:
        writer.transport.abort()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until one side ends."""
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def way_to(proxy: Proxy) -> AsyncIterator[dict[str, str]]:
    """Run an HTTP proxy of a network that knows the site's name; yield what a machine there has for it, and for the certificate."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(f"CONNECT {SITE}:443 ".encode()), head
            there, back = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(copy(reader, back), copy(there, writer))
        writer.transport.abort()

    root = proxy.folder / "root.pem"
    root.write_text(proxy.root, encoding="ascii")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as served:
        port = served.sockets[0].getsockname()[1]
        yield {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "SSL_CERT_FILE": str(root)}


async def exchange(proxy: Proxy, request: bytes, seconds: float = 1.5) -> list[int]:
    """Send bytes and return the statuses of all answers, until the connection ends or is silent for this long."""
    reader, writer = await proxy.connect()
    answer = b""
    try:
        writer.write(request)
        while True:
            async with asyncio.timeout(seconds):
                piece = await reader.read(2**16)
            if not piece:
                break
            answer += piece
    except (TimeoutError, OSError):
        pass
    finally:
        writer.transport.abort()
    return [int(status) for status in _STATUS.findall(answer)]


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the chunks of a body. Raises EOFError if the last one is missing."""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
