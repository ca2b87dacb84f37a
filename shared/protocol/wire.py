"""Defines the frames of the mesh and encodes them. Only this file knows tag numbers.

A frame is a msgpack array that starts with its tag. New fields go at the end and have a default: older peers ignore them, newer peers
fill them in. A body stays bytes until the method's own decoder reads it.
"""

import msgspec

from shared import errors
from shared.types import NodeId, Role

#: Our protocol version. HELLO refuses a peer without a common version.
VERSION = 1

#: Per frame. Small enough that a large message does not delay other calls' frames for long.
MAX_BODY_BYTES = 64 * 1024 - 256
#: The peer is not authenticated before HELLO, so we store no more than this for it.
MAX_BYTES_BEFORE_HELLO = 4 * 1024
#: For a message in pieces. A larger RPC should be a stream.
MAX_MESSAGE_BYTES = 1024 * 1024
#: For the request of a method that allows more than a message: its body follows in pieces once the callee grants it.
MAX_REQUEST_BYTES = 17 * 1024 * 1024
#: Concurrent calls per side on one link. The smaller number of both HELLOs applies.
MAX_CALLS = 4096
#: Longer deadlines are reduced to this.
MAX_DEADLINE_MS = 24 * 3600 * 1000
#: Per write. NATS has `max_payload: 2MB`, and 256 KiB take about 2 ms on a gigabit line.
MAX_WRITE_BYTES = 256 * 1024


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The first frame of each side. ``signature`` covers ``hello_text`` for the purpose "hello"."""

    version: int
    role: Role
    node: NodeId
    #: Milliseconds since 1970 by the sender's clock, to tell clock skew from a bad certificate.
    sent_at_ms: int
    #: The program's version, for display.
    software: str
    signature: bytes
    #: The mesh CA's certificate for ``node``; empty over NATS, which guarantees the node itself.
    certificate: bytes = b""
    #: The number of the sender's revocation list.
    revocations: int = 0
    #: The certified key's delegation to ``node``, if several processes share a profile; empty if both are the same key.
    delegation: bytes = b""
    #: How many of the receiver's calls the sender runs at once. The link uses the smaller number of both HELLOs.
    max_calls: int = MAX_CALLS
    #: The process, as in announcements. Over NATS, two processes with one key both get every message of this link.
    instance: str = ""


class Announce(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """An encoded ``Announcement`` of the directory."""

    body: bytes


class Call(msgspec.Struct, array_like=True, tag=3, frozen=True):
    id: int
    method: str
    #: What is left of the caller's deadline. Each hop subtracts its own time.
    deadline_ms: int
    body: bytes
    #: More of the body follows in PIECE frames.
    more: bool = False
    #: How much the callee may send before it gets more credit.
    credit_items: int = 0
    credit_bytes: int = 0
    #: The 16 bytes of a UUID, or empty.
    request_id: bytes = b""
    traceparent: str = ""
    idempotency_key: str = ""
    #: The user's key or token. Sent between clients and the platform's services, never to a worker.
    credential: str = ""
    #: The body's size if it is longer than a message. Then it follows in PIECE frames as far as GRANT frames allow.
    body_bytes: int = 0


class Accepted(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The callee accepted the call. Optional."""

    id: int
    body: bytes = b""


class Reply(msgspec.Struct, array_like=True, tag=5, frozen=True):
    id: int
    body: bytes
    more: bool = False


class Item(msgspec.Struct, array_like=True, tag=6, frozen=True):
    id: int
    body: bytes
    more: bool = False


class End(msgspec.Struct, array_like=True, tag=7, frozen=True):
    id: int
    body: bytes
    more: bool = False


class Error(msgspec.Struct, array_like=True, tag=8, frozen=True):
    id: int
    problem: errors.Problem


class Cancel(msgspec.Struct, array_like=True, tag=9, frozen=True):
    id: int


class Credit(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """The reader has taken items and the callee may send more. The two amounts differ if the window changes."""

    id: int
    items: int
    bytes: int
    #: Since the last CREDIT.
    taken_items: int


class Ping(msgspec.Struct, array_like=True, tag=11, frozen=True):
    number: int


class Pong(msgspec.Struct, array_like=True, tag=12, frozen=True):
    number: int
    revocations: int = 0


class Goaway(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """The sender accepts no new calls. Running ones finish."""

    reason: str


class Piece(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """The next part of the body of this call's last frame with ``more``."""

    id: int
    body: bytes
    more: bool


class Grant(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """The callee takes this many more bytes of a call's long body. Sent to peers that announced one with CALL."""

    id: int
    bytes: int


Frame = Hello | Announce | Call | Accepted | Reply | Item | End | Error | Cancel | Credit | Ping | Pong | Goaway | Piece | Grant

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Frame]).decode


def decode(data: bytes, *, limit: int = MAX_WRITE_BYTES) -> list[Frame]:
    """Return the frames of one write. Raises ProtocolViolation for anything else."""
    if len(data) > limit:
        raise errors.ProtocolViolation(f"a write of {len(data)} bytes is over the limit of {limit}")
    try:
        return _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"not frames: {error}") from error


def hello_text(hello: Hello, peer: NodeId, link_id: int) -> bytes:
    """Return the text that a HELLO signs. It is bound to this peer and this link, so the signature is useless elsewhere."""
    return encode([hello.version, hello.role, hello.node, peer, link_id, hello.sent_at_ms])


def size_of(frame: Frame) -> int:
    """Return roughly how many bytes a frame adds to a write. Called for every frame, so it must be fast."""
    body: bytes | None = getattr(frame, "body", None)
    return 512 if body is None else 256 + len(body)
