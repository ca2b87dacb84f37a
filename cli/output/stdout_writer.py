"""Write a stream to stdout without blocking the event loop.

A pager that is not scrolled, or a terminal stopped by Ctrl-S, blocks write(2). In the loop's thread, that would stop the pings, and the
link would be declared dead after three seconds. So this waits until stdout can take a piece; meanwhile the worker gets no credit and its
stream pauses.
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
        self.at_line_start = True
        self._descriptor = _descriptor(stream)

    async def write(self, text: str) -> None:
        """Write without buffering. Raises BrokenPipeError when the reader is gone."""
        if not text:
            return
        self.at_line_start = text.endswith("\n")
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        self._stream.flush()
        rest = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        while rest:
            await self._writable(self._descriptor)
            try:
                rest = rest[os.write(self._descriptor, rest[:_PIECE_BYTES]) :]
            except BlockingIOError:
                # Another process, such as a shell's other job, has set O_NONBLOCK on the shared terminal: wait again.
                continue

    async def end_line(self) -> None:
        """Print a newline, unless the text ended with one."""
        if not self.at_line_start:
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
            return  # epoll refuses regular files, which never block
        try:
            # No deadline: a person may read one page for an hour, and Ctrl-C ends it.
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)


def _descriptor(stream: TextIO) -> int | None:
    """Return None if stdout is not a file, as in tests, or if the system cannot say whether it takes more, as Windows."""
    try:
        return stream.fileno() if hasattr(select, "poll") else None
    except io.UnsupportedOperation:
        return None
