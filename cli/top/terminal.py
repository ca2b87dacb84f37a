"""The terminal during `aicli top`: the alternate screen and single keys, restored on any exit.

Frames are painted over each other, so that nothing flickers; lines do not wrap.
"""

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TextIO

import click

from cli.output.stdout_writer import StdoutWriter
from cli.top.text_view import Line, TextSpan

# From ECMA-48 and xterm: the alternate screen, the cursor, and wrapping at the last column.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
#: Terminals send different codes for Home and End.
_NAMED: Final = {
    **dict.fromkeys((b"\x1b[A", b"\x1bOA"), "up"),
    **dict.fromkeys((b"\x1b[B", b"\x1bOB"), "down"),
    **dict.fromkeys((b"\x1b[H", b"\x1bOH", b"\x1b[1~", b"\x1b[7~"), "home"),
    **dict.fromkeys((b"\x1b[F", b"\x1bOF", b"\x1b[4~", b"\x1b[8~"), "end"),
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
}
#: A sequence of ECMA-48, one of a keypad, or a letter.
_KEY: Final = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[@-~]|[ -~]")
#: More bytes at once were not typed.
_MAX_KEYS: Final = 64
#: For terminals that do not report their size.
_USUAL: Final = (80, 24)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The user's terminal; either stream may be redirected."""

    stdin: TextIO
    stdout: TextIO

    def is_screen(self) -> bool:
        return self.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def size(self) -> tuple[int, int]:
        """Return columns and rows."""
        try:
            columns, rows = os.get_terminal_size(self.stdout.fileno())
        except OSError:
            return _USUAL
        return (columns, rows) if columns > 0 and rows > 0 else _USUAL

    @contextmanager
    def taken(self, pressed: Callable[[str], None]) -> Iterator["Screen"]:
        """Use the screen within the block; ``pressed`` gets each key as a letter or name. Needs a running event loop."""
        with _keys(self.stdin, pressed):
            try:
                self._write(_ENTER)
                yield Screen(self.stdout)
            finally:
                self._write(_LEAVE)

    def _write(self, text: str) -> None:
        """Write immediately: a few bytes that restore the terminal must not wait."""
        self.stdout.flush()
        os.write(self.stdout.fileno(), text.encode())


class Screen:
    """Created by ``Terminal.taken``."""

    def __init__(self, stdout: TextIO) -> None:
        self._outlet = StdoutWriter(stdout)
        self._has_colour = not os.environ.get("NO_COLOR")

    async def paint(self, lines: Sequence[Line]) -> None:
        """Wait for a stopped terminal without blocking."""
        rows = ["".join(_styled(span) if self._has_colour else span.text for span in line) + _REST_OF_LINE for line in lines]
        await self._outlet.write(_HOME + "\r\n".join(rows) + _REST_OF_SCREEN)


def _styled(span: TextSpan) -> str:
    match span.style if span.text else "":
        case "":
            return span.text
        case "bold":
            return click.style(span.text, bold=True)
        case "dim":
            return click.style(span.text, dim=True)
        case colour:
            return click.style(span.text, fg=colour)


@contextmanager
def _keys(stdin: TextIO, pressed: Callable[[str], None]) -> Iterator[None]:
    """Read keys without Enter and echo. Ctrl-C stays a signal; Ctrl-Z and Ctrl-\\ are disabled: they would leave the screen as it is."""
    if not stdin.isatty():
        yield
        return
    import termios

    descriptor = stdin.fileno()
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(descriptor)
    ours = termios.tcgetattr(descriptor)
    ours[3] &= ~(termios.ICANON | termios.ECHO)
    for unwanted in (termios.VSUSP, termios.VQUIT):
        ours[6][unwanted] = b"\0"

    def read() -> None:
        try:
            typed = os.read(descriptor, _MAX_KEYS)
        except OSError:  # EIO, if the terminal hung up
            typed = b""
        if not typed:
            loop.remove_reader(descriptor)
        for key in keys(typed):
            pressed(key)

    try:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, ours)
        loop.add_reader(descriptor, read)
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def keys(typed: bytes) -> list[str]:
    """Return the keys that were pressed; ignore sequences and bytes of other keys."""
    found = (_NAMED.get(part) or part.decode() for part in _KEY.findall(typed))
    return [key for key in found if not key.startswith("\x1b")]
