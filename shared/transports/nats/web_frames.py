"""WebSocket (RFC 6455) as a client of NATS needs it: the handshake, and frames of a stream of bytes. Pure but for the randomness.

NATS doesn't care where frames begin. So a frame's payload is passed on as it comes: the server may put all that waits for a slow reader
into one frame of 64 MB, and libraries give a frame only when it is whole.
"""

import base64
import hashlib
import secrets
from functools import cache

#: A proxy's refusal may have a page behind it, which isn't read.
MAX_HEAD_BYTES = 16 * 1024
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80
_MAX_CONTROL_BYTES = 125
#: Up to here one large number is masked faster than four times a quarter of the bytes.
_SMALL_BYTES = 1024
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class BadHandshake(Exception):
    """Whoever answered speaks no WebSocket here. The message follows its name."""


class BadFrame(ConnectionError):
    """The server sent what no server may send."""


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(16)).decode()


def request(path: str, host: str, key: str) -> bytes:
    lines = (
        f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode()


def status_of(head: bytes) -> int:
    """Return the status of an HTTP response; 0 if it is none."""
    version, _, rest = head.partition(b" ")
    return int(rest[:3]) if version in {b"HTTP/1.1", b"HTTP/1.0"} and rest[:3].isdigit() else 0


def check_answer(head: bytes, key: str) -> None:
    """Raises BadHandshake."""
    status = status_of(head)
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    if status != 101:
        raise BadHandshake(f"answered with status {status} instead of 101" if status else "doesn't speak HTTP")
    accepted = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest())
    if fields.get(b"upgrade", b"").lower() != b"websocket" or fields.get(b"sec-websocket-accept") != accepted:
        raise BadHandshake("answered without a WebSocket")


def render(payload: bytes, opcode: int = _BINARY) -> bytes:
    """Return a whole frame, masked, as a client has to."""
    size = len(payload)
    if size <= _MAX_CONTROL_BYTES:
        head = bytes((_FINAL | opcode, _MASKED | size))
    elif size < 1 << 16:
        head = bytes((_FINAL | opcode, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, _MASKED | 127)) + size.to_bytes(8, "big")
    mask = secrets.token_bytes(4)
    return head + mask + _mask(payload, mask)


def _mask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    if size <= _SMALL_BYTES:
        masks = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(masks, "little")).to_bytes(size, "little")
    masked = bytearray(payload)
    for place, byte in enumerate(mask):
        masked[place::4] = masked[place::4].translate(_exclusive_or(byte))
    return bytes(masked)


@cache
def _exclusive_or(byte: int) -> bytes:
    return bytes(each ^ byte for each in range(256))


def render_close() -> bytes:
    return render((1000).to_bytes(2, "big"), _CLOSE)


class FrameReader:
    """Takes the frames off a stream."""

    def __init__(self) -> None:
        #: What a PING or CLOSE asks us to send.
        self.answers: list[bytes] = []
        self.is_over = False
        #: Bytes of the present frame that have not come.
        self._left = 0
        #: The beginning of a head or of a control frame.
        self._begun = b""

    def feed(self, data: bytes) -> bytes:
        """Return the payload in ``data``. Raises BadFrame."""
        data, at, found = self._begun + data if self._begun else data, 0, list[bytes]()
        while not self.is_over:
            if self._left:
                part = data[at : at + self._left]
                found.append(part)
                at += len(part)
                self._left -= len(part)
            head = _read_head(data, at)
            if head is None:
                break
            opcode, start, size = head
            if opcode <= _BINARY:
                at, self._left = start, size
            elif start + size > len(data):
                break
            else:
                self._take_control(opcode, data[start : start + size])
                at = start + size
        self._begun = data[at:]
        return found[0] if len(found) == 1 else b"".join(found)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self.answers.append(render(payload, _PONG))
        elif opcode == _CLOSE:
            self.answers.append(render_close())
            self.is_over = True


def _read_head(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return opcode, where the payload starts, and its size; None if more bytes are needed. Raises BadFrame."""
    if len(data) < at + 2:
        return None
    opcode, size, start = data[at], data[at + 1], at + 2
    kind = opcode & 0x0F
    if opcode & 0x70 or size & _MASKED or kind not in {_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG}:
        raise BadFrame("a frame that no NATS server sends")
    if kind >= _CLOSE and (size > _MAX_CONTROL_BYTES or not opcode & _FINAL):
        raise BadFrame("a control frame in parts")
    if size > _MAX_CONTROL_BYTES:
        end = start + (2 if size == 126 else 8)
        if len(data) < end:
            return None
        size, start = int.from_bytes(data[start:end], "big"), end
    return kind, start, size
