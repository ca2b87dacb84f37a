"""A connection over a pipe in memory: order, credit, endings, and strangers."""

import asyncio
from collections.abc import Callable

import pytest
from pyhyperswarm import MAX_MESSAGE_BYTES, ConnectionClosed, Path, PeerAddress, PeerConnection, SwarmError, sidecar_frames
from pyhyperswarm.flow_control import MAX_PART_BYTES, OVERHEAD, ReceiveWindow
from pyhyperswarm.peer_connection import Opening

FIRST, WINDOW = 8192, 1024 * 1024


class Wire:
    """Two connections back to back. Messages arrive when the test calls ``carry``."""

    def __init__(self) -> None:
        self.queues: dict[bool, list[sidecar_frames.Frame]] = {True: [], False: []}
        self.ends = {side: self._end(side) for side in (True, False)}

    def _end(self, side: bool) -> PeerConnection:
        queue = self.queues[side]

        class Pipe:
            def send(self, kind: int, number: int, payload: bytes) -> None:
                queue.append((kind, number, payload))

        opening = Opening(b"k" * 32, side, Path.DIRECT, PeerAddress("127.0.0.1", 1), (), b"c" * 32, FIRST)
        return PeerConnection(Pipe(), 1, opening, ReceiveWindow(FIRST, WINDOW), lambda number: None)

    def carry(self) -> int:
        """Deliver until nothing is in flight; return the bytes of messages."""
        carried = 0
        while any(self.queues.values()):
            for side, queue in self.queues.items():
                for kind, _, payload in [queue.pop(0) for _ in range(len(queue))]:
                    carried += len(payload) if kind in (sidecar_frames.DATA, sidecar_frames.PART) else 0
                    self.deliver(self.ends[not side], kind, payload)
        return carried

    def deliver(self, end: PeerConnection, kind: int, payload: bytes) -> None:
        if end.closed is not None:
            return
        if kind == sidecar_frames.DATA:
            end.receive(payload)
        elif kind == sidecar_frames.PART:
            end.receive_part(payload)
        elif kind == sidecar_frames.CREDIT:
            end.receive_credit(sidecar_frames.number(payload))
        elif kind == sidecar_frames.CLOSE:
            end.end("")


@pytest.fixture
async def wire() -> Wire:
    made = Wire()
    for end in made.ends.values():
        end.open_window()
    made.carry()
    return made


def collect(connection: PeerConnection) -> list[bytes]:
    got: list[bytes] = []
    connection.on_message = got.append
    return got


async def test_messages_arrive_whole_and_in_order(wire: Wire) -> None:
    sent = [b"", b"a", b"b" * MAX_PART_BYTES, b"c" * (MAX_PART_BYTES + 1), b"d" * MAX_MESSAGE_BYTES, b"e"]
    got = collect(wire.ends[False])
    for message in sent:
        wire.ends[True].send(message)
    wire.carry()
    assert got == sent


async def test_buffered_messages_are_delivered_when_a_callback_is_set(wire: Wire) -> None:
    wire.ends[True].send(b"early")
    wire.carry()
    assert collect(wire.ends[False]) == [b"early"]


async def test_a_reader_that_stops_pauses_the_sender_after_one_window(wire: Wire) -> None:
    sender = wire.ends[True]
    for _ in range(100):
        sender.send(b"x" * MAX_PART_BYTES)
    assert wire.carry() <= WINDOW
    assert sender.is_full


async def test_a_stopped_reader_of_long_messages_buffers_at_most_a_window_and_a_message(wire: Wire) -> None:
    for _ in range(50):
        wire.ends[True].send(b"x" * MAX_MESSAGE_BYTES)
    assert wire.carry() <= WINDOW + MAX_MESSAGE_BYTES


async def test_reading_resumes_the_sender(wire: Wire) -> None:
    sender, reader = wire.ends[True], wire.ends[False]
    told = []
    sender.on_room = lambda: told.append(not sender.is_full)
    for _ in range(40):
        sender.send(b"x" * MAX_PART_BYTES)
    wire.carry()
    assert sender.is_full
    waiting = asyncio.ensure_future(sender.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(40):
        assert len(await reader.read()) == MAX_PART_BYTES
        wire.carry()
    await asyncio.wait_for(waiting, 30)
    assert told == [True]


async def test_an_unauthenticated_peer_may_send_little_until_the_window_is_opened() -> None:
    wire = Wire()
    stranger, host = wire.ends[True], wire.ends[False]
    got = collect(host)
    for _ in range(100):
        stranger.send(b"x" * 1000)
    wire.carry()
    assert len(got) <= FIRST // 1000
    host.open_window()
    wire.carry()
    assert len(got) == 100


async def test_a_long_message_of_an_unauthenticated_peer_waits_for_the_window() -> None:
    wire = Wire()
    got = collect(wire.ends[False])
    wire.ends[True].send(b"x" * MAX_MESSAGE_BYTES)
    assert wire.carry() <= FIRST
    wire.ends[False].open_window()
    wire.carry()
    assert got == [b"x" * MAX_MESSAGE_BYTES]


async def test_an_overlong_message_is_refused_by_the_sender(wire: Wire) -> None:
    with pytest.raises(SwarmError, match="over the limit"):
        wire.ends[True].send(bytes(MAX_MESSAGE_BYTES + 1))
    wire.ends[True].send(b"still open")


async def test_an_endless_message_closes_the_receiver(wire: Wire) -> None:
    victim = wire.ends[False]
    for _ in range(MAX_MESSAGE_BYTES // MAX_PART_BYTES):
        victim.receive_part(bytes(MAX_PART_BYTES))
    assert victim.closed is None
    victim.receive_part(b"x")
    assert victim.closed == "the peer sent a message that is too long"


async def test_messages_before_the_end_are_still_read(wire: Wire) -> None:
    reader = wire.ends[False]
    wire.ends[True].send(b"last words")
    wire.ends[True].close()
    wire.carry()
    assert [message async for message in reader] == [b"last words"]
    with pytest.raises(ConnectionClosed):
        await reader.read()


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda connection: connection.read(), id="a reader"),
        pytest.param(lambda connection: connection.write(b"x"), id="a writer"),
        pytest.param(lambda connection: connection.drained(), id="a producer"),
    ],
)
async def test_the_end_reaches_every_waiter(wire: Wire, wait: Callable[[PeerConnection], object]) -> None:
    connection = wire.ends[True]
    connection.send(bytes(MAX_MESSAGE_BYTES))
    connection.send(bytes(MAX_MESSAGE_BYTES))
    waiting = asyncio.ensure_future(wait(connection))  # type: ignore[call-overload]
    await asyncio.sleep(0)
    connection.end("the cable was cut")
    with pytest.raises(ConnectionClosed, match="the cable was cut"):
        await asyncio.wait_for(waiting, 30)


async def test_closing_twice_notifies_once(wire: Wire) -> None:
    connection = wire.ends[True]
    reasons: list[str] = []
    connection.on_closed = reasons.append
    connection.close("enough")
    connection.close("again")
    connection.end("too late")
    await asyncio.wait_for(connection.wait_closed(), 30)
    assert reasons == ["enough"]
    assert [kind for kind, _, _ in wire.queues[True]] == [sidecar_frames.CLOSE]
    with pytest.raises(ConnectionClosed):
        connection.send(b"x")


async def test_a_canceled_reader_loses_nothing(wire: Wire) -> None:
    reader = wire.ends[False]
    waiting = asyncio.ensure_future(reader.read())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    wire.ends[True].send(b"x")
    wire.carry()
    assert await asyncio.wait_for(reader.read(), 30) == b"x"


def test_costs_match_the_protocol() -> None:
    assert (OVERHEAD, MAX_PART_BYTES) == (32, 65_536)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x", "host:-1"])
def test_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        PeerAddress.parse(text)


def test_an_address_is_parsed_as_formatted() -> None:
    assert str(PeerAddress.parse(" 203.0.113.5:49737 ")) == "203.0.113.5:49737"
