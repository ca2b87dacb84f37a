"""Writes of one turn of the loop."""

import asyncio

from shared import joined_writes
from shared.joined_writes import JoinedWrites


async def test_what_is_written_in_one_turn_goes_out_together_and_in_its_order() -> None:
    sent: list[bytes] = []
    writes = JoinedWrites(sent.append)
    for number in range(3):
        writes.write(b"%d" % number)
    assert sent == []
    await asyncio.sleep(0)
    writes.write(b"later")
    await asyncio.sleep(0)
    assert sent == [b"012", b"later"]


async def test_it_holds_no_more_than_its_bound() -> None:
    sent: list[bytes] = []
    writes = JoinedWrites(sent.append)
    writes.write(b"a")
    writes.write(b"b" * joined_writes.MOST_BYTES)
    assert [len(data) for data in sent] == [1 + joined_writes.MOST_BYTES]
    await asyncio.sleep(0)
    assert len(sent) == 1


async def test_what_is_held_can_be_sent_before_a_goodbye() -> None:
    sent: list[bytes] = []
    writes = JoinedWrites(sent.append)
    writes.write(b"a")
    writes.flush()
    await asyncio.sleep(0)
    assert sent == [b"a"]
