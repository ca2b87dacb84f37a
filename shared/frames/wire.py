"""The frames of the mesh: their fields, their limits, and the way to bytes and back. Only this file knows tag numbers.

A frame is a msgpack array whose first element is its tag. Fields may be added at the end, with a default: an older peer
ignores them, a newer one fills them in. A body stays bytes until the method's own decoder reads it.
"""

import msgspec

from shared import errors
from shared.types import NodeId, Role

#: The protocol that this program speaks. A peer that speaks none of ours is refused at HELLO.
VERSION = 1

#: A body in one frame. Small enough that a large message never holds up another call's frames for long.
MAX_BODY_BYTES = 64 * 1024 - 256
#: Nobody has been recognised before HELLO, so nobody may make us hold more than this.
MAX_BYTES_BEFORE_HELLO = 4 * 1024
#: A message in pieces. An RPC that needs more should be a stream.
MAX_MESSAGE_BYTES = 1024 * 1024
#: Calls of one side that may run at once on a link; of the numbers in both HELLOs the smaller one counts.
MAX_CALLS = 4096
#: What a HELLO means that does not say: older versions refuse more.
MAX_CALLS_UNSAID = 256
#: One write to the transport: NATS has `max_payload: 2MB`, and a write this size is one millisecond of a gigabit line.
MAX_WRITE_BYTES = 256 * 1024


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The first frame of each side. ``signature`` covers ``hello_text`` under the purpose "hello"."""

    version: int
    role: Role
    node: NodeId
    #: Milliseconds since 1970 by the sender's clock, so that an offset can be told from a bad certificate.
    sent_at_ms: int
    #: The program's version, for people.
    software: str
    signature: bytes
    #: What the mesh CA says of ``node``; empty inside the house, where NATS vouches for it.
    certificate: bytes = b""
    #: The number of the revocation list that the sender holds.
    revocations: int = 0
    #: What the certified key says of ``node``, where one profile has several processes; empty where they are the same key.
    delegation: bytes = b""
    #: Calls of the receiver that the sender runs at once on this link. The link uses the smaller number of both HELLOs.
    max_calls: int = MAX_CALLS_UNSAID
    #: The process, as in its announcements: over NATS two processes with one key get every message of this link.
    instance: str = ""


class Announce(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """An ``Announcement`` of the directory, encoded by it."""

    body: bytes


class Call(msgspec.Struct, array_like=True, tag=3, frozen=True):
    id: int
    method: str
    #: What is left of the caller's deadline; each hop subtracts its own time.
    deadline_ms: int
    body: bytes
    #: More of the body follows in PIECE frames.
    more: bool = False
    #: How many items, and bytes of items, the callee may send before it is given more.
    credit_items: int = 0
    credit_bytes: int = 0
    #: The 16 bytes of a UUID; empty for none.
    request_id: bytes = b""
    traceparent: str = ""
    #: Empty for none.
    idempotency_key: str = ""
    #: The user's key or token; only between a client and the house's services, never to a worker.
    credential: str = ""


class Accepted(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Work on the call has begun; optional."""

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
    """The reader has taken items; the callee may send this much more, which differs from what was taken where the window changes."""

    id: int
    items: int
    bytes: int
    #: Taken since the last CREDIT. A peer that knows no such field says 0.
    taken_items: int = 0


class Ping(msgspec.Struct, array_like=True, tag=11, frozen=True):
    number: int


class Pong(msgspec.Struct, array_like=True, tag=12, frozen=True):
    number: int
    revocations: int = 0


class Goaway(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """The sender takes no new calls; running ones finish."""

    reason: str


class Piece(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """The next part of the body of the last frame of this call that said ``more``."""

    id: int
    body: bytes
    more: bool


Frame = Hello | Announce | Call | Accepted | Reply | Item | End | Error | Cancel | Credit | Ping | Pong | Goaway | Piece

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Frame]).decode


def decode(data: bytes, *, limit: int = MAX_WRITE_BYTES) -> list[Frame]:
    """The frames in one write; raises ProtocolViolation for anything that is not exactly that."""
    if len(data) > limit:
        raise errors.ProtocolViolation(f"a write of {len(data)} bytes is over the limit of {limit}")
    try:
        return _decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"not frames: {error}") from error


def hello_text(hello: Hello, peer: NodeId, link_id: int) -> bytes:
    """What a HELLO signs: itself, for this peer, on this link, so that it is worth nothing anywhere else."""
    return encode([hello.version, hello.role, hello.node, peer, link_id, hello.sent_at_ms])


def size_of(frame: Frame) -> int:
    """About what a frame adds to a write: its body, and room for the rest. Called for every frame, so it does not look closer."""
    body: bytes | None = getattr(frame, "body", None)
    return 512 if body is None else 256 + len(body)
