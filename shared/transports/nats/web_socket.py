"""The socket to a NATS server behind HTTPS: a WebSocket, also through an HTTP proxy of the network that this machine is in."""

import asyncio
import base64
import hashlib
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from shared import addresses, errors
from shared.identity import base64url
from shared.transports.nats import web_frames
from shared.transports.nats.server_socket import SOCKET_BYTES, ServerSocket
from shared.transports.nats.web_frames import FrameReader

#: NATS's INFO has 1 or 2 KB.
_MAX_LINE_BYTES = 64 * 1024
#: Until the server's first word, which it says unasked.
_SILENT_SECONDS = 1.5
#: Of a proxy whose server is away, or that has too many connections. It is tried again, as a port that nobody listens on.
_AWAY = {429, 502, 503, 504}
_ASK = "ask who runs it to let WebSockets pass"


class WebSocket(ServerSocket):
    _frames: FrameReader
    #: What came with a line.
    _rest = b""

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        await self._open(None, buffer_size, connect_timeout)

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        # nats-py does this again if NATS's own port has TLS.
        if self._io_writer is None:
            await self._open(ssl_context, buffer_size, connect_timeout)

    async def _open(self, context: ssl.SSLContext | None, buffer_size: int, seconds: int) -> None:
        server, proxy = self.server, find_proxy(self.server.host)
        host, port = (server.host, server.port) if proxy is None else (proxy.hostname, proxy.port or 80)
        try:
            self._bare_io_reader, self._bare_io_writer = await asyncio.open_connection(host, port, limit=buffer_size)
        except OSError as error:
            if proxy is None:
                raise
            why = f"the HTTP proxy at {_place(proxy)} does not answer: {error.strerror or error}"
            raise errors.Unavailable(why, hint="start it, or correct HTTPS_PROXY", retry_after_seconds=1) from error
        self._io_reader, self._io_writer = self._bare_io_reader, self._bare_io_writer
        if proxy is not None:
            await self._pass_proxy(proxy)
        if server.tls:
            await super().connect_tls(server.certified_name, _trusting(context, server.pin), buffer_size, seconds)
            self._check_pin()
        key = web_frames.new_key()
        head = await self._ask(web_frames.request(server.path, addresses.host_port(server.host, server.port), key))
        try:
            web_frames.check_answer(head, key)
        except web_frames.BadHandshake as error:
            if web_frames.status_of(head) in _AWAY:
                raise ConnectionRefusedError(str(error)) from error
            raise errors.Unavailable(f"{_who(head)} at {server} {error}", hint=_ASK, retry_after_seconds=1) from error
        self._frames = FrameReader()
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                self._rest = await self.read(buffer_size)
        except TimeoutError:
            why = f"the WebSocket at {server} is open, but nothing comes through: a proxy holds it back"
            raise errors.Unavailable(why, hint=_ASK, retry_after_seconds=1) from None
        await asyncio.sleep(self.settle_seconds)

    async def _pass_proxy(self, proxy: SplitResult) -> None:
        target = addresses.host_port(self.server.host, self.server.port)
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.username is not None:
            words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(words.encode()).decode()}")
        status = web_frames.status_of(await self._ask("\r\n".join((*lines, "", "")).encode()))
        if status != 200:
            hint = "write them into HTTPS_PROXY: http://user:password@host:port" if status == 407 else f"ask who runs it to allow {target}"
            what = "asks for user and password" if status == 407 else f"refuses connections to {target} (status {status})"
            raise errors.Unavailable(f"the HTTP proxy at {_place(proxy)} {what}", hint=hint, retry_after_seconds=1)

    async def _ask(self, request: bytes) -> bytes:
        """Send a request's head, and return that of the response."""
        assert self._io_reader is not None
        assert self._io_writer is not None
        self._io_writer.write(request)
        try:
            head: bytes = await self._io_reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ConnectionRefusedError("no response to the offer of a WebSocket") from error
        return head

    def _check_pin(self) -> None:
        assert self._io_writer is not None
        certificate = self._io_writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if self.server.pin and pin_of(certificate) != self.server.pin:
            raise errors.Unavailable(
                f"the certificate of {self.server} is not the one that was pinned", hint="somebody is between, or the mesh has a new key"
            )

    def writelines(self, payload: list[bytes]) -> None:
        super().writelines([web_frames.render(b"".join(payload))])

    async def read(self, buffer_size: int) -> bytes:
        if self._rest:
            found, self._rest = self._rest, b""
            return found
        while data := await super().read(buffer_size):
            found = self._frames.feed(data)
            # Only the last is expected, and nobody may fill our buffer with them.
            if self._io_writer is not None and self._io_writer.transport.get_write_buffer_size() < SOCKET_BYTES:
                super().writelines(self._frames.answers[-1:])
            self._frames.answers.clear()
            if found or self._frames.is_over:
                return found
        return b""

    async def readline(self) -> bytes:
        line = b""
        while b"\n" not in line:
            part = await self.read(_MAX_LINE_BYTES)
            if not part or len(line) > _MAX_LINE_BYTES:
                return line
            line += part
        line, _, self._rest = line.partition(b"\n")
        return line + b"\n"

    def at_eof(self) -> bool:
        return self._frames.is_over or bool(super().at_eof())  # type: ignore[no-untyped-call]


def find_proxy(host: str) -> SplitResult | None:
    """Return the proxy of HTTPS_PROXY, unless NO_PROXY names the host. Raises Unavailable."""
    url = getproxies_environment().get("https")
    if not url or addresses.is_loopback(host) or proxy_bypass_environment(host):
        return None
    found = urlsplit(url if "://" in url else f"http://{url}")
    with suppress(ValueError):  # of the port
        if found.scheme == "http" and found.hostname and found.port != 0:
            return found
    # It may have a password.
    raise errors.Unavailable("HTTPS_PROXY is not an address such as http://proxy.example.org:3128", hint="correct it")


def _place(proxy: SplitResult) -> str:
    """Return where the proxy is, without its password."""
    return addresses.host_port(proxy.hostname or "", proxy.port)


def pin_of(certificate: bytes) -> str:
    """Return the SHA-256 of a certificate's key, as curl's --pinnedpubkey has it, but in the letters of URLs."""
    return base64url.encode(hashlib.sha256(_public_key_of(certificate)).digest())


def _public_key_of(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of RFC 5280, 4.1. OpenSSL has read the certificate before; `cryptography` needs 15 MB for this."""
    at, _ = _content_of(certificate, _content_of(certificate, 0)[0])
    # The version is optional. Then: serial number, signature, issuer, validity, subject.
    for _ in range(6 if certificate[at] == 0xA0 else 5):
        _, at = _content_of(certificate, at)
    return certificate[at : _content_of(certificate, at)[1]]


def _content_of(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the element at this place starts and ends."""
    start, length = at + 2, der[at + 1]
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start])
    return start, start + length


def _trusting(context: ssl.SSLContext | None, pin: str) -> ssl.SSLContext:
    if not pin:
        return context or ssl.create_default_context()
    pinned = ssl.create_default_context()
    pinned.check_hostname, pinned.verify_mode = False, ssl.CERT_NONE
    return pinned


def _who(head: bytes) -> str:
    """Return who answered, by its own word."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"server":
            return f"the server ({value.strip()[:40].decode('ascii', 'replace')})"
    return "the server"
