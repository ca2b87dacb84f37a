"""A terminal with a user: a pair of pseudo-terminals, one of which belongs to the program."""

import asyncio
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

#: The start of a frame, and the switch back to the terminal's own screen.
PICTURE, LEFT = "\x1b[H", "\x1b[?1049l"
SECONDS = 60.0


@dataclass(slots=True)
class Person:
    """The user at the other end of a terminal: what they see and press."""

    descriptor: int
    #: The program's end of the terminal.
    ours: int
    stdin: TextIO
    stdout: TextIO
    shown: str = ""

    async def sees(self, *words: str, pictures: int = 1, seconds: float = SECONDS) -> str:
        """Wait for a frame with all of these texts, after a number of frames."""
        async with asyncio.timeout(seconds):
            while not (self.shown.count(PICTURE) >= pictures and all(word in self.last for word in words)):
                await self._more()
        return self.last

    @property
    def last(self) -> str:
        return self.shown.rpartition(PICTURE)[2]

    async def sees_the_end(self) -> None:
        async with asyncio.timeout(SECONDS):
            while LEFT not in self.shown:
                await self._more()

    def press(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def _more(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self.descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self.descriptor)
        self.shown += os.read(self.descriptor, 65536).decode(errors="replace")


@contextmanager
def sitting(columns: int = 110, rows: int = 24) -> Iterator[Person]:
    descriptor, ours = pty.openpty()
    try:
        with os.fdopen(ours, "r", closefd=False) as stdin, os.fdopen(ours, "w", closefd=False) as stdout:
            person = Person(descriptor, ours, stdin, stdout)
            person.resize(columns, rows)
            yield person
    finally:
        os.close(ours)
        os.close(descriptor)
