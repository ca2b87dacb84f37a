"""Requests longer than a message: when the callee grants bytes, the order of pieces, and what a hostile peer can send."""

import pytest

from shared import errors
from shared.protocol import long_bodies, wire
from shared.protocol.calls import Calls
from shared.protocol.wire import Call, Cancel, Error, Frame, Grant, Piece

PROBLEM = errors.Problem("bad_request", "no")
SIZE = 3 * long_bodies.GRANT_BYTES + 5
BODY = bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)


def pair() -> tuple[Calls, Calls]:
    return Calls(dialled=True), Calls(dialled=False)


def announce(asking: Calls, answering: Calls, body: bytes = BODY) -> Call:
    """Open a call whose body the callee has not granted yet."""
    [call] = asking.ask(Call(asking.next_id(), "auth.x", 1000, body), streaming=True)
    assert isinstance(call, Call)
    assert answering.receive(call) == call
    return call


def give(to: Calls, frames: list[Frame]) -> None:
    for frame in frames:
        to.receive(frame)


def upload(asking: Calls, answering: Calls, call: Call) -> tuple[Call, int]:
    """Return the call with its body, and the maximum number of bytes in flight."""
    most = granted = received = 0
    while True:
        grants = answering.grant(call.id)
        granted += sum(grant.bytes for grant in grants if isinstance(grant, Grant))
        most = max(most, granted - received)
        give(asking, grants)
        piece = asking.next_piece()
        assert piece is not None
        received += len(piece.body)
        if isinstance(whole := answering.receive(piece), Call):
            return whole, most


@pytest.mark.parametrize("size", [wire.MAX_MESSAGE_BYTES + 1, 2 * wire.MAX_MESSAGE_BYTES, SIZE, wire.MAX_REQUEST_BYTES])
def test_a_long_body_arrives_in_windows_of_a_mebibyte(size: int) -> None:
    asking, answering = pair()
    call = announce(asking, answering, bytes(size))
    assert (call.body, call.more, call.body_bytes) == (b"", True, size)
    assert asking.next_piece() is None, "nothing was granted"
    whole, most = upload(asking, answering, call)
    assert (whole.body, whole.more, whole.body_bytes, whole.credit_items) == (bytes(size), False, 0, call.credit_items)
    assert most == long_bodies.GRANT_BYTES
    assert not asking.is_uploading(call.id)
    assert answering.item(call.id, b"answer")


def test_two_bodies_are_sent_in_turn() -> None:
    asking, answering = pair()
    for call in (announce(asking, answering), announce(asking, answering)):
        give(asking, answering.grant(call.id))
    pieces = [asking.next_piece() for _ in range(4)]
    assert [piece and piece.id for piece in pieces] == [1, 3, 1, 3]


def test_a_body_that_is_refused_is_never_sent() -> None:
    asking, answering = pair()
    call = announce(asking, answering)
    [refusal] = answering.fail(call.id, PROBLEM)
    assert asking.receive(refusal) == Error(call.id, PROBLEM)
    assert asking.next_piece() is None
    assert not asking.is_uploading(call.id)


def test_a_body_canceled_half_way_leaves_nothing_behind() -> None:
    asking, answering = pair()
    call = announce(asking, answering)
    give(asking, answering.grant(call.id))
    piece = asking.next_piece()
    assert piece is not None
    answering.receive(piece)
    grants = answering.grant(call.id)
    [cancel] = asking.withdraw(call.id)
    assert asking.next_piece() is None
    give(asking, grants)  # the grant crosses the CANCEL
    assert answering.receive(cancel) == Cancel(call.id)
    assert answering.grant(call.id) == []
    [end] = answering.fail(call.id, PROBLEM)
    asking.receive(end)
    assert not asking.is_open(call.id)
    assert not answering.is_open(call.id)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Call(1, "auth.x", 1000, b"", more=True, body_bytes=wire.MAX_MESSAGE_BYTES), id="not longer than a message"),
        pytest.param(Call(1, "auth.x", 1000, b"", more=True, body_bytes=-1), id="a negative size"),
        pytest.param(Call(1, "auth.x", 1000, b"x", more=True, body_bytes=SIZE), id="a part of the body with the call"),
    ],
)
def test_a_false_announcement_violates_the_protocol(call: Call) -> None:
    with pytest.raises(errors.ProtocolViolation, match="announces"):
        Calls(dialled=False).receive(call)


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([Piece(1, b"x" * (SIZE + 1), False)], id="longer than announced"),
        pytest.param([Piece(1, b"x", False)], id="shorter than announced"),
        pytest.param([Piece(1, b"", True)], id="an empty piece"),
        pytest.param([Piece(1, b"x" * (long_bodies.GRANT_BYTES + 1), True)], id="more than was granted"),
    ],
)
def test_another_body_than_the_announced_violates_the_protocol(pieces: list[Frame]) -> None:
    asking, answering = pair()
    call = announce(asking, answering)
    answering.grant(call.id)
    with pytest.raises(errors.ProtocolViolation, match="another body"):
        give(answering, pieces)


def test_a_piece_before_a_grant_violates_the_protocol() -> None:
    asking, answering = pair()
    call = announce(asking, answering)
    with pytest.raises(errors.ProtocolViolation, match="more than was granted"):
        answering.receive(Piece(call.id, b"x", True))


@pytest.mark.parametrize("size", [0, -1, SIZE + 1])
def test_a_grant_of_more_than_the_body_violates_the_protocol(size: int) -> None:
    asking, answering = pair()
    call = announce(asking, answering)
    with pytest.raises(errors.ProtocolViolation, match="grant"):
        asking.receive(Grant(call.id, size))


def test_a_grant_for_a_short_request_violates_the_protocol() -> None:
    asking, _ = pair()
    asking.ask(Call(1, "auth.x", 1000, b"q"), streaming=False)
    with pytest.raises(errors.ProtocolViolation, match="grant"):
        asking.receive(Grant(1, 1))
