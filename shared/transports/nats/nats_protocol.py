"""Parses and encodes the NATS client protocol, without I/O.

See docs.nats.io/reference/reference-protocols/nats-protocol.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from shared import errors

#: The longest line is an INFO with many cluster addresses. For lines that we send, the server's limit is 4 KiB.
MAX_LINE_BYTES = 64 * 1024
#: Our servers have `max_payload: 2MB`.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024

_CRLF = b"\r\n"
_HEADER_LINE = b"NATS/1.0"


class NatsMessage(NamedTuple):
    """A published message. A tuple, for speed."""

    sid: int
    subject: bytes
    reply: bytes
    headers: bytes
    payload: bytes


class Info(msgspec.Struct, frozen=True):
    """What the server reports about itself, first and whenever its cluster changes. Only the fields that we use."""

    max_payload: int
    server_id: str = ""
    nonce: str = ""
    tls_required: bool = False
    headers: bool = False
    connect_urls: tuple[str, ...] = ()
    #: Lame duck mode: the server is about to close its connections.
    ldm: bool = False


class NatsPing(NamedTuple):
    """The server wants a PONG."""


class NatsPong(NamedTuple):
    """The server has processed everything that we sent before our PING."""


class ServerError(NamedTuple):
    """``-ERR``: a permissions violation keeps the connection open, anything else closes it."""

    text: str

    @property
    def is_fatal(self) -> bool:
        return not self.text.lower().startswith("permissions violation")


Operation = NatsMessage | Info | NatsPing | NatsPong | ServerError

_decode_info = msgspec.json.Decoder(Info).decode


class NatsParser:
    """Parses bytes from the socket, in chunks of any size."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Operation]:
        """Return the completed operations. Raises ProtocolViolation if the connection must be closed."""
        if self._rest:
            data = self._rest + data
        found: list[Operation] = []
        at = 0
        while (line_end := data.find(_CRLF, at)) >= 0:
            if data.startswith((b"MSG ", b"HMSG "), at):
                message, next_at = _message(data, at, line_end)
                if message is None:
                    break
                found.append(message)
                at = next_at
                continue
            operation = _control(data[at:line_end])
            if operation is not None:
                found.append(operation)
            at = line_end + 2
        self._rest = data[at:]
        if line_end < 0 and len(self._rest) > MAX_LINE_BYTES:
            raise errors.ProtocolViolation("the NATS server sent an endless line")
        return found


def _message(data: bytes, at: int, line_end: int) -> tuple[NatsMessage | None, int]:
    """Parse ``MSG subject sid [reply] size`` or ``HMSG subject sid [reply] header-size size`` and the payload, if complete."""
    try:
        with_headers = data[at] == 0x48
        words = data[at:line_end].split()
        size = int(words[-1])
        header_size = int(words[-2]) if with_headers else 0
        reply = words[3] if len(words) == (6 if with_headers else 5) else b""
        sid = int(words[2])
    except (ValueError, IndexError) as error:
        raise errors.ProtocolViolation("the NATS server sent an invalid message line") from error
    if not 0 <= header_size <= size <= MAX_PAYLOAD_BYTES:
        raise errors.ProtocolViolation(f"the NATS server announced a message of {size} bytes")
    start = line_end + 2
    end = start + size
    if len(data) < end + 2:
        return None, at
    body = start + header_size
    return NatsMessage(sid, words[1], reply, data[start:body], data[body:end]), end + 2


def _control(line: bytes) -> Operation | None:
    verb, _, rest = line.partition(b" ")
    match verb.upper():
        case b"PING":
            return NatsPing()
        case b"PONG":
            return NatsPong()
        case b"INFO":
            try:
                return _decode_info(rest)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise errors.ProtocolViolation("the NATS server sent an invalid INFO") from error
        case b"-ERR":
            return ServerError(rest.decode(errors="replace").strip(" '"))
        case b"+OK" | b"":
            return None
        case _:
            raise errors.ProtocolViolation(f"not a NATS server: {line[:40]!r}")


def publish(subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None) -> bytes:
    to = f"{subject} {reply}" if reply else subject
    if not headers:
        return b"PUB %b %d\r\n%b\r\n" % (to.encode(), len(payload), payload)
    head = encode_headers(headers)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (to.encode(), len(head), len(head) + len(payload), head, payload)


def subscribe(sid: int, subject: str, queue: str = "") -> bytes:
    return f"SUB {subject} {queue} {sid}\r\n".encode() if queue else f"SUB {subject} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    return b"UNSUB %d\r\n" % sid


def connect(*, name: str, version: str, credentials: Mapping[str, str]) -> bytes:
    """Return the login line. With ``verbose`` off the server confirms only PINGs."""
    options = {
        "verbose": False, "pedantic": False, "lang": "aimesh", "version": version, "protocol": 1, "name": name,
        **credentials, "headers": True, "no_responders": True, "echo": True,
    }  # fmt: skip
    return b"CONNECT " + msgspec.json.encode(options) + _CRLF


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Replace line breaks in values by spaces, because they would start new headers."""
    lines = [f"{name}: {' '.join(value.splitlines())}" for name, value in headers.items()]
    return _HEADER_LINE + _CRLF + "\r\n".join(lines).encode() + _CRLF + _CRLF


def decode_headers(block: bytes) -> dict[str, str]:
    """Return the headers with lowercase names. The last of several values counts."""
    headers = {}
    for line in block.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers
