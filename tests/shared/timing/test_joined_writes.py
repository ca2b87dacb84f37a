"""Writes within one iteration of the loop."""

import asyncio

from shared.timing import joined_writes
from shared.timing.joined_writes import JoinedWrites


class Socket:
    """Like uvloop's transport: accepts nothing once it is closed."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.closed


async def test_writes_of_one_event_loop_turn_are_sent_together_in_order() -> None:
    socket = Socket()
    sent, writes = socket.sent, JoinedWrites(socket)
    for number in range(3):
        writes.write(b"%d" % number)
    assert sent == []
    await asyncio.sleep(0)
    writes.write(b"later")
    await asyncio.sleep(0)
    assert sent == [b"012", b"later"]


async def test_the_buffer_is_bounded() -> None:
    socket = Socket()
    sent, writes = socket.sent, JoinedWrites(socket)
    writes.write(b"a")
    writes.write(b"b" * joined_writes.MAX_BYTES)
    assert [len(data) for data in sent] == [1 + joined_writes.MAX_BYTES]
    await asyncio.sleep(0)
    assert len(sent) == 1


async def test_buffered_writes_can_be_flushed_before_closing() -> None:
    socket = Socket()
    sent, writes = socket.sent, JoinedWrites(socket)
    writes.write(b"a")
    writes.flush()
    await asyncio.sleep(0)
    assert sent == [b"a"]


async def test_a_socket_closed_meanwhile_is_not_written_to() -> None:
    socket = Socket()
    writes = JoinedWrites(socket)
    writes.write(b"a")
    socket.closed = True
    await asyncio.sleep(0)
    writes.write(b"b" * joined_writes.MAX_BYTES)
    assert socket.sent == []
