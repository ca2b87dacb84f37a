"""A reader that stops reading must stop the stream and nothing else."""

import asyncio
import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import pytest

from cli.output.stdout_writer import StdoutWriter


@dataclass(frozen=True, slots=True)
class Pipe:
    reader: int
    writer: TextIO

    def fill(self) -> int:
        """Fill the pipe, and return how many bytes that took."""
        descriptor = self.writer.fileno()
        os.set_blocking(descriptor, False)
        total = 0
        try:
            while True:
                total += os.write(descriptor, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(descriptor, True)
        return total

    def read(self, count: int) -> bytes:
        text = b""
        while len(text) < count:
            text += os.read(self.reader, count - len(text))
        return text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4 * 4096)
    with os.fdopen(writer, "w", encoding="utf-8") as stdout:
        yield Pipe(reader, stdout)
        try:
            os.close(reader)
        except OSError:
            pass


async def test_text_is_written_immediately(pipe: Pipe) -> None:
    await StdoutWriter(pipe.writer).write("grüße")
    assert pipe.read(7).decode() == "grüße"


async def test_full_pipe_blocks_the_writer_not_the_loop(pipe: Pipe) -> None:
    filled = pipe.fill()
    async with asyncio.TaskGroup() as tasks:
        writing = tasks.create_task(StdoutWriter(pipe.writer).write("after"))
        for _ in range(20):
            await asyncio.sleep(0)  # one iteration of the loop
        assert not writing.done()
        assert pipe.read(filled) == b"." * filled
    assert pipe.read(5) == b"after"


async def test_waiting_write_can_be_canceled(pipe: Pipe) -> None:
    pipe.fill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await StdoutWriter(pipe.writer).write("never")


async def test_long_text_passes_a_small_pipe(pipe: Pipe) -> None:
    text = "0123456789" * 5_000
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(StdoutWriter(pipe.writer).write(text))
        assert await asyncio.to_thread(pipe.read, len(text)) == text.encode()


async def test_closed_reader_is_a_broken_pipe(pipe: Pipe) -> None:
    os.close(pipe.reader)
    with pytest.raises(BrokenPipeError):
        await StdoutWriter(pipe.writer).write("hello")


async def test_line_is_ended_once(pipe: Pipe) -> None:
    outlet = StdoutWriter(pipe.writer)
    await outlet.end_line()
    await outlet.write("a")
    await outlet.end_line()
    await outlet.end_line()
    await outlet.write("b\n")
    await outlet.end_line()
    assert pipe.read(4) == b"a\nb\n"


async def test_regular_file_never_waits() -> None:
    with tempfile.TemporaryFile("w", encoding="utf-8") as file:
        await StdoutWriter(file).write("x" * 10_000)
        assert os.fstat(file.fileno()).st_size == 10_000
