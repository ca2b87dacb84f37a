"""Tracks all calls on one link, without I/O: frames come in, whole messages go out. A state table defines what is allowed.

The shell (``shared.rpc``) opens, answers and cancels calls here and gets the frames to send. It passes in every frame that arrives and
gets the completed message, if any. The side that dialed the link numbers its calls 1, 3, 5 …, the other 2, 4, 6 …, so the lowest bit
tells whose call it is. Requests longer than a message are in ``long_bodies``.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

import msgspec

from shared import errors
from shared.protocol import wire
from shared.protocol.long_bodies import IncomingBody, OutgoingBody
from shared.protocol.windows import CreditWindow, Windows
from shared.protocol.wire import Accepted, Call, Cancel, Credit, End, Error, Frame, Grant, Item, Piece, Reply

#: Readers grant credit at least every this many items. If a reader's process dies, only credited items are billed.
CREDIT_ITEMS = 64
#: Without long bodies, which the callee grants only while it has memory for them.
MAX_PARTIAL_BYTES = 8 * 1024 * 1024


class CallState(Enum):
    """The state of one call. The first three are for the asking side, the others for the answering side."""

    ASKED = "asked"
    LISTENING = "listening"
    WITHDRAWN = "withdrawn"
    ARRIVING = "arriving"
    SERVING = "serving"
    STOPPING = "stopping"
    DONE = "done"


#: Which frames may arrive in which state, and the state that follows. Anything else violates the protocol.
NEXT: dict[tuple[CallState, type[Frame]], CallState] = {
    (CallState.ASKED, Accepted): CallState.ASKED,
    (CallState.ASKED, Grant): CallState.ASKED,
    (CallState.ASKED, Piece): CallState.ASKED,
    (CallState.ASKED, Reply): CallState.DONE,
    (CallState.ASKED, Error): CallState.DONE,
    (CallState.LISTENING, Accepted): CallState.LISTENING,
    (CallState.LISTENING, Grant): CallState.LISTENING,
    (CallState.LISTENING, Piece): CallState.LISTENING,
    (CallState.LISTENING, Item): CallState.LISTENING,
    (CallState.LISTENING, End): CallState.DONE,
    (CallState.LISTENING, Error): CallState.DONE,
    # The callee may send these before it sees the CANCEL.
    (CallState.WITHDRAWN, Accepted): CallState.WITHDRAWN,
    (CallState.WITHDRAWN, Grant): CallState.WITHDRAWN,
    (CallState.WITHDRAWN, Piece): CallState.WITHDRAWN,
    (CallState.WITHDRAWN, Item): CallState.WITHDRAWN,
    (CallState.WITHDRAWN, Reply): CallState.DONE,
    (CallState.WITHDRAWN, End): CallState.DONE,
    (CallState.WITHDRAWN, Error): CallState.DONE,
    (CallState.ARRIVING, Piece): CallState.ARRIVING,
    (CallState.ARRIVING, Cancel): CallState.STOPPING,
    (CallState.SERVING, Credit): CallState.SERVING,
    (CallState.SERVING, Cancel): CallState.STOPPING,
    (CallState.STOPPING, Credit): CallState.STOPPING,
    (CallState.STOPPING, Cancel): CallState.STOPPING,
    (CallState.STOPPING, Piece): CallState.STOPPING,
}

_OF_A_CALL = (Item, Reply, Accepted, End, Error, Cancel, Credit, Piece, Grant)

Message = Call | Accepted | Reply | Item | End | Error | Cancel | Credit


@dataclass(slots=True)
class _Partial:
    """A message in pieces: the first frame, and the parts of the body so far."""

    frame: Call | Reply | Item | End
    parts: list[bytes]
    size: int


@dataclass(slots=True)
class _FrameCall:
    state: CallState
    #: Answering side: what we may still send.
    credit_items: int = 0
    credit_bytes: int = 0
    #: Answering side: items that the reader has acknowledged.
    taken_items: int = 0
    window: CreditWindow | None = None
    partial: _Partial | None = None
    outgoing: OutgoingBody | None = None
    incoming: IncomingBody | None = None


class Calls:
    """The calls of one link in both directions, at most ``max_calls`` per side. Owned by one connection."""

    def __init__(self, *, dialled: bool, max_calls: int = wire.MAX_CALLS) -> None:
        self._max_calls = max_calls
        self._windows = Windows()
        self._unread: dict[int, CreditWindow] = {}
        self._calls: dict[int, _FrameCall] = {}
        self._next_id = 1 if dialled else 2
        self._own_parity = self._next_id & 1
        #: The highest call id of the peer. Ids only grow, so an unknown id up to this one is over.
        self._highest_seen = 0
        #: How many of the peer's calls are running.
        self._inbound = 0
        self._partial_bytes = 0
        #: Our calls with pieces that were granted and not sent yet, in turn.
        self._uploads: deque[int] = deque()

    def next_id(self) -> int:
        return self._next_id

    def ask(self, call: Call, *, streaming: bool) -> list[Frame]:
        """Open a call with ``next_id`` and return the frames to send. Raises Overloaded if the link has too many calls."""
        if len(self._calls) - self._inbound + len(self._unread) >= self._max_calls:
            raise errors.Overloaded(f"{self._max_calls} of our calls are already running on this link", retry_after_seconds=1)
        call_id, self._next_id = self._next_id, self._next_id + 2
        window = self._windows.open() if streaming else None
        self._calls[call_id] = _FrameCall(CallState.ASKED if window is None else CallState.LISTENING, window=window)
        if len(call.body) <= wire.MAX_BODY_BYTES and window is None:
            return [call]
        credit = (0, 0) if window is None else (window.granted_items, window.granted_bytes)
        head, rest, long_bytes = b"", list[Frame](), 0
        if len(call.body) > wire.MAX_MESSAGE_BYTES:
            self._calls[call_id].outgoing, long_bytes = OutgoingBody(call), len(call.body)
        else:
            head, rest = _split(call_id, call.body)
        first = msgspec.structs.replace(
            call, body=head, more=bool(rest or long_bytes), credit_items=credit[0], credit_bytes=credit[1], body_bytes=long_bytes
        )
        return [first, *rest]

    def withdraw(self, call_id: int) -> list[Frame]:
        """Cancel one of our calls, or discard the unread items of an ended call. Safe to call twice."""
        call = self._calls.get(call_id)
        if call is None:
            if (unread := self._unread.pop(call_id, None)) is not None:
                self._windows.close(unread)
            return []
        if call.state is CallState.WITHDRAWN:
            return []
        call.state, call.outgoing = CallState.WITHDRAWN, None
        if call.window is not None:
            self._windows.close(call.window)
        return [Cancel(call_id)]

    def is_uploading(self, call_id: int) -> bool:
        """Return whether one of our calls has not sent all of its long body."""
        call = self._calls.get(call_id)
        return call is not None and call.outgoing is not None

    def next_piece(self) -> Piece | None:
        """Return the next piece of a long body that its callee has granted; of several calls in turn."""
        while self._uploads:
            call_id = self._uploads.popleft()
            call = self._calls.get(call_id)
            if call is None or (outgoing := call.outgoing) is None:
                continue
            piece = outgoing.next_piece()
            if not piece.more:
                call.outgoing = None
            elif not outgoing.waits:
                self._uploads.append(call_id)
            return piece
        return None

    def grant(self, call_id: int) -> list[Frame]:
        """Let the peer send more of a long body, when that is due: once ``receive`` has returned its CALL, and after each piece."""
        call = self._calls.get(call_id)
        if call is None or call.state is not CallState.ARRIVING or call.incoming is None:
            return []
        size = call.incoming.next_grant()
        return [Grant(call_id, size)] if size else []

    def take(self, call_id: int, size: int) -> list[Frame]:
        """Note that the reader has taken an item of this size. Returns a CREDIT frame when it is due."""
        call = self._calls.get(call_id)
        window = self._unread.get(call_id) if call is None else call.window
        if window is None or window.closed:
            return []
        window.unread_items -= 1
        window.unread_bytes -= size
        window.taken_items += 1
        window.taken_bytes += size
        if window.overdraft:
            self._windows.overdraw(window)
        if call is None:
            if window.unread_items <= 0:
                self.withdraw(call_id)
            return []
        if window.taken_items < min(CREDIT_ITEMS, window.granted_items // 2) and window.taken_bytes < window.granted_bytes // 2:
            return []
        taken_items = window.taken_items
        items, bytes_ = self._windows.renew(window)
        # The frame is due even if the window shrinks and there is nothing to grant.
        return [Credit(call_id, items, bytes_, taken_items)]

    def item(self, call_id: int, body: bytes) -> list[Frame] | None:
        """Return the frames of a stream item, or None while the reader has no credit. The last item may exceed the byte credit."""
        call = self._calls.get(call_id)
        if call is None:
            return []
        if call.credit_items <= 0 or call.credit_bytes <= 0:
            return None
        call.credit_items -= 1
        call.credit_bytes -= len(body)
        if len(body) <= wire.MAX_BODY_BYTES:
            return [Item(call_id, body)]
        head, rest = _split(call_id, body)
        return [Item(call_id, head, True), *rest]

    def credited_items(self, call_id: int) -> int:
        """Return how many items the reader has acknowledged; 0 when the call is over."""
        call = self._calls.get(call_id)
        return 0 if call is None else call.taken_items

    def accept(self, call_id: int, body: bytes = b"") -> list[Frame]:
        return [Accepted(call_id, body)] if call_id in self._calls else []

    def reply(self, call_id: int, body: bytes) -> list[Frame]:
        if not self._drop(call_id):
            return []
        head, rest = _split(call_id, body)
        return [Reply(call_id, head, bool(rest)), *rest]

    def end(self, call_id: int, body: bytes) -> list[Frame]:
        if not self._drop(call_id):
            return []
        head, rest = _split(call_id, body)
        return [End(call_id, head, bool(rest)), *rest]

    def fail(self, call_id: int, problem: errors.Problem) -> list[Frame]:
        return [Error(call_id, problem)] if self._drop(call_id) else []

    def receive(self, frame: Frame) -> Message | None:
        """Return the message that this frame completes, if any; of a long request also its CALL, with ``more``. Raises ProtocolViolation if
        the link must be closed, and Overloaded if this call must be refused, or withdrawn if it is ours."""
        if type(frame) is Call:
            return self._receive_call(frame)
        if not isinstance(frame, _OF_A_CALL):
            raise errors.ProtocolViolation(f"{type(frame).__name__} is not a frame of a call")
        call = self._calls.get(frame.id)
        if type(frame) is Item and call is not None and call.state is CallState.LISTENING and not (frame.more or call.partial):
            # A shortcut for the most frequent case.
            self._count(call, frame)
            return frame
        if call is None:
            if self._is_over(frame.id):
                return None
            raise errors.ProtocolViolation(f"{type(frame).__name__} for call {frame.id}, which was never opened")
        state = NEXT.get((call.state, type(frame)))
        if state is None:
            raise errors.ProtocolViolation(f"{type(frame).__name__} while call {frame.id} is {call.state.value}")
        return self._advance(call, frame, state)

    def is_open(self, call_id: int) -> bool:
        return call_id in self._calls

    def _receive_call(self, frame: Call) -> Message | None:
        if frame.id & 1 == self._own_parity or frame.id < 1:
            raise errors.ProtocolViolation(f"the peer used call number {frame.id}, which is one of ours")
        if frame.id <= self._highest_seen:
            return None  # a duplicate
        if self._inbound >= self._max_calls:
            self._highest_seen = frame.id
            raise errors.Overloaded(f"{self._max_calls} calls of this peer are running", retry_after_seconds=1)
        self._highest_seen = frame.id
        self._inbound += 1
        call = _FrameCall(CallState.ARRIVING if frame.more else CallState.SERVING, frame.credit_items, frame.credit_bytes)
        self._calls[frame.id] = call
        if not frame.more:
            return frame
        if frame.body_bytes:
            call.incoming = IncomingBody(frame)
            return frame
        self._collect(call, frame)
        return None

    def _is_over(self, call_id: int) -> bool:
        return call_id < self._next_id if call_id & 1 == self._own_parity else call_id <= self._highest_seen

    def _advance(self, call: _FrameCall, frame: Message | Piece | Grant, state: CallState) -> Message | None:
        if isinstance(frame, Piece):
            return self._receive_piece(call, frame)
        if isinstance(frame, Grant):
            self._receive_grant(call, frame)
            return None
        if call.partial is not None and not isinstance(frame, (Cancel, Credit, Error)):
            raise errors.ProtocolViolation(f"{type(frame).__name__} inside a message in pieces")
        withdrawn = call.state is CallState.WITHDRAWN
        if isinstance(frame, Credit):
            call.credit_items += max(0, frame.items)
            call.credit_bytes += max(0, frame.bytes)
            call.taken_items += max(0, frame.taken_items)
        elif isinstance(frame, (Item, Reply, End)) and frame.more:
            self._collect(call, frame)
            return None
        elif isinstance(frame, Item):
            self._count(call, frame)
        if state is CallState.DONE:
            self._drop(frame.id)
        else:
            call.state = state
        return None if withdrawn else frame

    def _count(self, call: _FrameCall, item: Item) -> None:
        window = call.window
        if window is None:
            raise errors.ProtocolViolation(f"an item for call {item.id}, which is not a stream")
        window.unread_items += 1
        window.unread_bytes += len(item.body)
        if (
            window.unread_items + window.taken_items > window.granted_items
            or window.unread_bytes + window.taken_bytes > window.granted_bytes + wire.MAX_MESSAGE_BYTES
        ):
            raise errors.ProtocolViolation(f"call {item.id} sent more than its credit")
        if window.unread_bytes > window.granted_bytes and not window.closed and not self._windows.overdraw(window):
            raise errors.Overloaded("too many unread answers on this link for an item of this size", retry_after_seconds=1)

    def _receive_grant(self, call: _FrameCall, grant: Grant) -> None:
        if call.state is CallState.WITHDRAWN:
            return
        if call.outgoing is None:
            raise errors.ProtocolViolation(f"call {grant.id} has no body to grant")
        if call.outgoing.waits:
            self._uploads.append(grant.id)
        call.outgoing.grant(grant.bytes)

    def _collect(self, call: _FrameCall, frame: Call | Reply | Item | End) -> None:
        call.partial = _Partial(frame, [], 0)
        self._add_part(call.partial, frame.body)

    def _add_part(self, partial: _Partial, body: bytes) -> None:
        partial.parts.append(body)
        partial.size += len(body)
        self._partial_bytes += len(body)
        if partial.size > wire.MAX_MESSAGE_BYTES or self._partial_bytes > MAX_PARTIAL_BYTES:
            raise errors.ProtocolViolation(f"a message in pieces is over {wire.MAX_MESSAGE_BYTES} bytes")

    def _receive_piece(self, call: _FrameCall, piece: Piece) -> Message | None:
        if call.incoming is not None:
            return self._receive_long(call, call.incoming, piece)
        partial = call.partial
        if partial is None:
            raise errors.ProtocolViolation(f"a piece for call {piece.id} without a first part")
        self._add_part(partial, piece.body)
        if piece.more:
            return None
        self._partial_bytes -= partial.size
        call.partial = None
        message = msgspec.structs.replace(partial.frame, body=b"".join(partial.parts), more=False)
        if isinstance(message, Call):
            if call.state is CallState.STOPPING:
                return None
            call.state = CallState.SERVING
            return message
        withdrawn = call.state is CallState.WITHDRAWN
        if isinstance(message, Item):
            self._count(call, message)
        else:
            self._drop(piece.id)
        return None if withdrawn else message

    def _receive_long(self, call: _FrameCall, incoming: IncomingBody, piece: Piece) -> Call | None:
        if call.state is CallState.STOPPING or (whole := incoming.receive(piece)) is None:
            return None
        call.state, call.incoming = CallState.SERVING, None
        return whole

    def _drop(self, call_id: int) -> bool:
        call = self._calls.pop(call_id, None)
        if call is None:
            return False
        if call.partial is not None:
            self._partial_bytes -= call.partial.size
        if call_id & 1 != self._own_parity:
            self._inbound -= 1
        if call.window is not None and not call.window.closed:
            if call.window.unread_items > 0:
                self._unread[call_id] = call.window
            else:
                self._windows.close(call.window)
        return True


def _split(call_id: int, body: bytes) -> tuple[bytes, list[Frame]]:
    size = wire.MAX_BODY_BYTES
    if len(body) <= size:
        return body, []
    starts = range(size, len(body), size)
    return body[:size], [Piece(call_id, body[at : at + size], at + size < len(body)) for at in starts]
