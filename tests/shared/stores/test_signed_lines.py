"""Files to which one process appends lines."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from shared.stores.signed_lines import LineFile


async def test_a_canceled_copy_ends_before_the_next_one_and_no_line_is_written_twice(tmp_path: Path) -> None:
    began, may_end = threading.Event(), threading.Event()

    async def page_after(number: int) -> tuple[Sequence[int], int]:
        return list(range(number + 1, 4)), 3

    def encode(row: int) -> bytes:
        began.set()
        assert may_end.wait(10)
        return b"%d\n" % row

    file = LineFile(tmp_path / "lines", page_after, encode)
    copying = asyncio.create_task(file.catch_up())
    await asyncio.to_thread(began.wait)
    copying.cancel()
    asyncio.get_running_loop().call_later(0.01, may_end.set)
    await asyncio.wait({copying})
    assert (copying.cancelled(), file.last) == (True, 3)
    await file.catch_up()
    assert file.path.read_bytes() == b"1\n2\n3\n"
