"""Shows an answer as Markdown while it streams: finished blocks stay, the last block is painted again with each change.

Nothing here blocks the event loop, and nothing in an answer controls the terminal.
"""

import asyncio
import io
import os
import re
import shutil
import time
from itertools import takewhile

import click
from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from cli.output import printing
from cli.output.stdout_writer import StdoutWriter

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
#: Higher than most screens.
_LIVE_LINES = 200
#: Painting takes at most a fifth of the time.
_REST_PER_PAINT = 4


def finished_length(text: str) -> int:
    """Return the length of the blocks at the start of ``text`` that no later text can change: up to the last blank line that is outside
    a code block and before a line that is not indented.
    """
    fence, after_blank, position, finished = "", False, 0, 0
    for line in text.splitlines(keepends=True):
        if not fence and after_blank and not line[0].isspace():
            finished = position
        if found := _FENCE.match(line):
            # A longer fence of the same kind ends a code block too.
            fence = "" if fence and found[1].startswith(fence) else fence or found[1]
        after_blank = not line.strip()
        position += len(line)
    return finished


class AnswerView:
    """One answer. Its text so far is ``text``, after ``thoughts``."""

    def __init__(self, writer: StdoutWriter, *, shows_thoughts: bool = True) -> None:
        self._writer = writer
        self._shows_thoughts = shows_thoughts
        self._is_dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.text = self.thoughts = ""
        self._finished = self._finished_thoughts = 0
        #: The painted lines below the finished blocks.
        self._lines: list[str] = []
        self._has_blocks = False
        self._note = ""
        self._changed = asyncio.Event()

    def add(self, text: str) -> None:
        self.text += printing.printable(text)
        self.show_note("")

    def think(self, text: str) -> None:
        self.thoughts += printing.printable(text) if self.thoughts else printing.printable(text).lstrip("\n")
        self.show_note("" if self._shows_thoughts else "Thinking …")

    def show_note(self, text: str) -> None:
        """Show a line below the answer until the next change."""
        self._note = printing.printable(text)
        self._changed.set()

    async def paint_changes(self) -> None:
        """Paint until canceled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            began = time.monotonic()
            await self._paint()
            await asyncio.sleep((time.monotonic() - began) * _REST_PER_PAINT)

    async def finish(self) -> None:
        """Paint the rest. The cursor is at the start of a line afterwards."""
        self._note = ""
        await self._paint(is_last=True)

    async def _paint(self, *, is_last: bool = False) -> None:
        size = shutil.get_terminal_size()
        text = self.text[self._finished :]
        length = len(text) if is_last else finished_length(text)
        rest = "" if is_last or self._is_dumb else _last_lines(text[length:])
        thoughts = self.thoughts[self._finished_thoughts :] if self._shows_thoughts else ""
        thought_length = len(thoughts) if is_last or self.text else thoughts.rstrip("\n").rfind("\n") + 1
        thinking = "" if self._is_dumb else _last_lines(thoughts[thought_length:])
        # A long answer takes a moment, during which the connection must stay alive.
        kept, shown = await asyncio.to_thread(lambda: (_render(text[:length], size.columns), _render(rest, size.columns)))
        thought = _dimmed_lines(thoughts[:thought_length], size.columns)
        has_before = self._has_blocks or self._finished_thoughts > 0 or bool(thought)
        kept = [*thought, *_separated(kept, has_before)]
        shown = [*_dimmed_lines(thinking, size.columns), *_separated(shown, has_before or bool(kept))]
        if self._note and not self._is_dumb:
            shown.append(click.style(self._note[: size.columns - 1], dim=True))
        # What has left the screen cannot be painted again.
        shown = shown[-max(1, size.lines - 1) :]
        painted = [*kept, *shown]
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(painted, self._lines, strict=False)))
        await self._writer.write(_erase(self._lines[same:], size.columns) + "".join(f"{line}\n" for line in painted[same:]))
        self._lines = shown
        self._finished += length
        self._finished_thoughts += thought_length
        self._has_blocks |= len(kept) > len(thought)


def _last_lines(text: str) -> str:
    """Return enough of an unfinished block to fill a screen, since each paint renders all of it."""
    lines = text.split("\n")
    if len(lines) <= _LIVE_LINES:
        return text
    return "\n".join((lines[0] if _FENCE.match(text) else "", *lines[-_LIVE_LINES:]))


def _separated(lines: list[str], has_before: bool) -> list[str]:
    return ["", *lines] if lines and has_before else lines


def _render(text: str, columns: int) -> list[str]:
    if not text.strip():
        return []
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, legacy_windows=False, highlight=False)
    with console.capture() as capture:
        # Without links of the terminal's, an address is always visible. The theme has the terminal's colors and no background.
        console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False))
    lines = [line.rstrip(" ") for line in capture.get().split("\n")]
    visible = [number for number, line in enumerate(lines) if click.unstyle(line).strip()]
    return lines[visible[0] : visible[-1] + 1] if visible else []


def _dimmed_lines(text: str, columns: int) -> list[str]:
    text = text.rstrip("\n")
    if not text:
        return []
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, legacy_windows=False, highlight=False)
    with console.capture() as capture:
        console.print(Text(text, style="dim"))
    return capture.get().removesuffix("\n").split("\n")


def _erase(lines: list[str], columns: int) -> str:
    """Return what removes the last lines from the terminal, which has wrapped them if it became narrower."""
    rows = sum(max(1, -(-cell_len(click.unstyle(line)) // columns)) for line in lines)
    return f"\x1b[{rows}A\x1b[J" if rows else ""
