"""Writes a stream to stdout without ever blocking the event loop.

A pager that is not scrolled, or a terminal stopped by Ctrl-S, blocks write(2). Were that the loop's thread, pings would stop
and three seconds later the link would be declared dead. So this waits until stdout can take a piece, and writes only then;
meanwhile no credit is given and the worker's stream pauses.
"""

import asyncio
import io
import os
import select
from typing import TextIO

#: POSIX: a pipe that polls as writable takes PIPE_BUF bytes without blocking. (pipe(7); 4096 on Linux)
_PIECE_BYTES = 4096


class StdoutWriter:
    """Stdout, for one command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._at_line_start = True
        self._descriptor = _descriptor(stream)

    async def write(self, text: str) -> None:
        """Out now, not when a buffer is full. Raises BrokenPipeError when the reader is gone."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if self._descriptor is None:
            self._stream.write(text)
            return
        self._stream.flush()
        rest = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        while rest:
            await self._writable(self._descriptor)
            try:
                rest = rest[os.write(self._descriptor, rest[:_PIECE_BYTES]) :]
            except BlockingIOError:
                # Somebody, such as a shell's other job, has set O_NONBLOCK on the shared terminal: wait again.
                continue

    @property
    def at_line_start(self) -> bool:
        return self._at_line_start

    async def end_line(self) -> None:
        """A newline, unless the text ended with one."""
        if not self._at_line_start:
            await self.write("\n")

    async def _writable(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        if poll.poll(0):
            return
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_writer(descriptor, ready.set)
        except PermissionError:
            return  # epoll refuses regular files, which never make anybody wait
        try:
            # No deadline: a person may read one page for an hour, and Ctrl-C ends it.
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)


def _descriptor(stream: TextIO) -> int | None:
    """None where stdout is no file, as in tests."""
    try:
        return stream.fileno()
    except io.UnsupportedOperation:
        return None
