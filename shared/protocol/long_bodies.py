"""The body of a request that is longer than a message, without I/O. Its CALL announces the size; its pieces wait until the callee grants
them, in windows. So the callee can refuse it unread, and no more than a window of each is on its way.
"""

import msgspec

from shared import errors
from shared.protocol import wire
from shared.protocol.wire import Call, Piece

#: What may be on its way. With a round trip of 50 ms that makes 160 Mbit/s.
GRANT_BYTES = 1024 * 1024


class OutgoingBody:
    """The asking side."""

    def __init__(self, call: Call) -> None:
        self._call_id = call.id
        self._body = call.body
        self._granted = 0
        self._sent = 0

    @property
    def waits(self) -> bool:
        """Whether it needs a grant to send more."""
        return self._sent == self._granted

    def grant(self, size: int) -> None:
        if not 0 < size <= len(self._body) - self._granted:
            raise errors.ProtocolViolation(f"call {self._call_id} has no {size} bytes more to grant")
        self._granted += size

    def next_piece(self) -> Piece:
        start, self._sent = self._sent, min(self._granted, self._sent + wire.MAX_BODY_BYTES)
        return Piece(self._call_id, self._body[start : self._sent], self._sent < len(self._body))


class IncomingBody:
    """The answering side."""

    def __init__(self, call: Call) -> None:
        if call.body or not call.more or call.body_bytes <= wire.MAX_MESSAGE_BYTES:
            raise errors.ProtocolViolation(f"call {call.id} announces a body of {call.body_bytes} bytes")
        self._call = call
        #: Not a list of pieces, because a peer may send tiny ones.
        self._body = bytearray()
        self._granted = 0

    def next_grant(self) -> int:
        """Return what to grant now; 0 while at least half a window is on its way."""
        ahead = self._granted - len(self._body)
        size = 0 if ahead > GRANT_BYTES // 2 else min(GRANT_BYTES - ahead, self._call.body_bytes - self._granted)
        self._granted += size
        return size

    def receive(self, piece: Piece) -> Call | None:
        """Return the call once its body is complete."""
        self._body += piece.body
        if not piece.body or len(self._body) > self._granted or piece.more != (len(self._body) < self._call.body_bytes):
            raise errors.ProtocolViolation(f"call {piece.id} sent another body than it announced, or more than was granted")
        if piece.more:
            return None
        return msgspec.structs.replace(self._call, body=bytes(self._body), more=False, body_bytes=0)
