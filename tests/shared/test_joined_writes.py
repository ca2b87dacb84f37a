"""Writes of one turn of the loop."""

import asyncio

from shared import joined_writes
from shared.joined_writes import JoinedWrites


class Socket:
    """As uvloop's transport: it takes nothing once it is closed."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.closed


async def test_what_is_written_in_one_turn_goes_out_together_and_in_its_order() -> None:
    socket = Socket()
    sent, writes = socket.sent, JoinedWrites(socket)
    for number in range(3):
        writes.write(b"%d" % number)
    assert sent == []
    await asyncio.sleep(0)
    writes.write(b"later")
    await asyncio.sleep(0)
    assert sent == [b"012", b"later"]


async def test_it_holds_no_more_than_its_bound() -> None:
    socket = Socket()
    sent, writes = socket.sent, JoinedWrites(socket)
    writes.write(b"a")
    writes.write(b"b" * joined_writes.MOST_BYTES)
    assert [len(data) for data in sent] == [1 + joined_writes.MOST_BYTES]
    await asyncio.sleep(0)
    assert len(sent) == 1


async def test_a_bound_of_ones_own() -> None:
    socket = Socket()
    writes = JoinedWrites(socket, 3)
    writes.write(b"ab")
    assert socket.sent == []
    writes.write(b"c")
    assert socket.sent == [b"abc"]


async def test_what_is_held_can_be_sent_before_a_goodbye() -> None:
    socket = Socket()
    sent, writes = socket.sent, JoinedWrites(socket)
    writes.write(b"a")
    writes.flush()
    await asyncio.sleep(0)
    assert sent == [b"a"]


async def test_a_socket_that_is_closed_meanwhile_is_let_alone() -> None:
    socket = Socket()
    writes = JoinedWrites(socket)
    writes.write(b"a")
    socket.closed = True
    await asyncio.sleep(0)
    writes.write(b"b" * joined_writes.MOST_BYTES)
    assert socket.sent == []
