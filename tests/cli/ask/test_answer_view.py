"""Answers in a terminal: the screen ends up the same however the text is split, and the answer can't control the terminal."""

import asyncio
import io
import os
import random
import re
import shutil
import threading

import click
import pytest

from cli.ask import answer_view
from cli.ask.answer_view import AnswerView
from cli.output.stdout_writer import StdoutWriter

DOCUMENT = """# Title

Some *text* with `code` and a [link](https://example.org/x).
More of it.

1. one

   inside one
2. two

```python
def f():

    return 1
```

| a | b |
|---|---|
| 1 | 日本語 |

The end"""


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        pytest.param("one", "", id="a line"),
        pytest.param("one\n\n", "", id="what follows may belong to it"),
        pytest.param("one\n\ntwo", "one\n\n", id="a paragraph"),
        pytest.param("1. one\n\n   more", "", id="the list item may go on"),
        pytest.param("1. one\n\n2", "1. one\n\n", id="an item"),
        pytest.param("```\na\n\nb", "", id="a code block"),
        pytest.param("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n", id="an ended code block"),
        pytest.param("````\n```\n\nb", "", id="a shorter fence"),
        pytest.param("~~~\n```\n\nb", "", id="another fence"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_finished_blocks(text: str, finished: str) -> None:
    assert text[: answer_view.finished_length(text)] == finished


class Screen:
    """A terminal that supports only what the view uses: lines, moving up, and erasing to the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int = 60, lines: int = 10, term: str = "xterm") -> None:
        self.out = io.StringIO()
        monkeypatch.setattr(self.out, "fileno", self._none, raising=False)
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, lines)))
        self.view = AnswerView(StdoutWriter(self.out))

    def _none(self) -> int:
        raise io.UnsupportedOperation

    def rows(self) -> list[str]:
        """Return the lines that are not empty."""
        first, *others = re.split(r"\x1b\[(\d+)A\x1b\[J", self.out.getvalue())
        rows = first.splitlines()
        for erased, text in zip(others[::2], others[1::2], strict=True):
            del rows[len(rows) - int(erased) :]
            rows += text.splitlines()
        return [row.rstrip() for row in map(click.unstyle, rows) if row.strip()]


async def show(screen: Screen, pieces: list[str]) -> list[str]:
    for piece in pieces:
        screen.view.add(piece)
        await screen.view._paint()
    await screen.view.finish()
    return screen.rows()


async def test_pieces_give_the_same_screen_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await show(Screen(monkeypatch), [DOCUMENT])
    assert any("link (https://example.org/x)" in row for row in whole)
    assert "The end" in whole[-1]
    rng = random.Random(18)
    for _ in range(20):
        cuts = sorted(rng.sample(range(len(DOCUMENT)), 12))
        pieces = [DOCUMENT[start:end] for start, end in zip([0, *cuts], [*cuts, len(DOCUMENT)], strict=True)]
        assert await show(Screen(monkeypatch), pieces) == whole


async def test_every_character_is_its_own_piece_on_a_small_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await show(Screen(monkeypatch, 20, 3), [DOCUMENT])
    assert await show(Screen(monkeypatch, 20, 3), list(DOCUMENT)) == whole


async def test_thoughts_come_before_the_answer_however_they_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    thoughts = "\nFirst \x1b[2J**of** all\n\nthen " + "more " * 20 + "\n\n"
    expected = ["First [2J**of** all", *["then " + "more " * 11, "more " * 9], "Hello"]
    for pieces in ([thoughts], list(thoughts), thoughts.split(" ")):
        joiner = " " if len(pieces) > 1 and "".join(pieces) != thoughts else ""
        screen = Screen(monkeypatch)
        for number, piece in enumerate(pieces):
            screen.view.think((joiner if number else "") + piece)
            await screen.view._paint()
        assert await show(screen, ["Hello"]) == [row.rstrip() for row in expected]
        assert "\x1b[2J" not in screen.out.getvalue()
        assert click.unstyle(screen.out.getvalue()).endswith("\n\nHello\n"), "one empty line between"
        assert "\n\n\n" not in click.unstyle(screen.out.getvalue())
    stopped = Screen(monkeypatch, term="dumb")
    stopped.view.think("one\ntwo")
    await stopped.view.finish()
    assert stopped.rows() == ["one", "two"]


async def test_answer_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    await show(screen, ["a\x1b]0;title\x07b &#27;[2J &#x1b;[2J [x](javascript:1)\x9b31m `\x1b[2J` \x1b"])
    assert screen.view.text == "a]0;titleb &#27;[2J &#x1b;[2J [x](javascript:1)31m `[2J` "
    shown = screen.out.getvalue()
    assert not {"\x07", "\x9b"} & set(shown)
    assert "\x1b[2J" not in shown
    assert "\x1b]" not in shown


async def test_dumb_terminal_gets_each_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, term="dumb")
    await show(screen, list("one\n\ntwo\n\nthree"))
    assert screen.out.getvalue() == "one\n\ntwo\n\nthree\n"


async def test_notes_go_with_the_next_change(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    screen.view.show_note("loading\x1b the model")
    await screen.view._paint()
    assert screen.rows() == ["loading the model"]
    screen.view.add("Hello")
    await screen.view.finish()
    assert screen.rows() == ["Hello"]


async def test_unchanged_lines_are_not_painted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    await show(screen, ["first line  \n", "second", " line"])
    assert screen.out.getvalue().count("first line") == 1


async def test_narrowed_terminal_is_erased_by_its_wrapped_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer_view._erase(["x" * 50, "日本" * 10], 20) == "\x1b[5A\x1b[J"
    assert answer_view._erase([], 20) == ""


async def test_last_piece_is_painted_although_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        painter = tasks.create_task(screen.view.paint_changes())
        for piece in ("one ", "two ", "three"):
            screen.view.add(piece)
            await asyncio.sleep(0)
        while screen.rows() != ["one two three"]:  # noqa: ASYNC110 - painting sets no event
            await asyncio.sleep(0)
        painter.cancel()


async def test_long_code_block_shows_its_end_and_is_whole_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_view, "_LIVE_LINES", 20)
    screen = Screen(monkeypatch)
    code = [f"line{number}" for number in range(50)]
    screen.view.add("\n".join(["```", *code]))
    await screen.view._paint()
    assert [row.strip() for row in screen.rows()][-5:] == code[-5:]
    await screen.view.finish()
    assert [row.strip() for row in screen.rows()] == code


async def test_cancelled_paint_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    started, end = threading.Event(), threading.Event()
    render = answer_view._render

    def wait(text: str, columns: int) -> list[str]:
        started.set()
        assert end.wait(60)
        return render(text, columns)

    monkeypatch.setattr(answer_view, "_render", wait)
    screen.view.add("one\n\ntwo")
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        painter = tasks.create_task(screen.view.paint_changes())
        await asyncio.to_thread(started.wait, 60)
        painter.cancel()
    end.set()
    await screen.view.finish()
    assert screen.rows() == ["one", "two"]
