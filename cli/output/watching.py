"""The option --watch, which repeats a listing until Ctrl-C: on a terminal each round replaces the one before, in a pipe it follows it."""

import contextlib
import functools
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import NoReturn, cast

import click

from cli.options import Command
from cli.output import print_format, printing
from cli.output.print_format import PrintFormat
from shared import errors

EVERY_SECONDS = 2.0
_WATCH = "cli.output.watch"
# From ECMA-48: home, erase the rest of the line, erase the rest of the screen.
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def listing_options(json_help: str) -> Callable[[Command], Command]:
    """Add -o, --json and --watch to a command that lists."""

    def decorate(command: Command) -> Command:
        shown = print_format.output_options(json_help)(command)

        @functools.wraps(shown)
        def run(*arguments: object, **options: object) -> object:
            context = click.get_current_context()
            # A group that lists by default has nothing to show before one of its commands.
            if context.invoked_subcommand or not context.meta.get(_WATCH):
                return shown(*arguments, **options)
            return repeat(lambda: shown(*arguments, **options))

        watch = click.option(
            "--watch", is_flag=True, expose_value=False, callback=_set_watch, help="Repeat every 2 seconds until Ctrl-C."
        )  # fmt: skip
        return cast("Command", watch(run))

    return decorate


def _set_watch(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[_WATCH] = value or context.meta.get(_WATCH)


class _RoundText(io.StringIO):
    """What one round prints. It is a terminal if stdout is."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def repeat(show: Callable[[], object]) -> NoReturn:
    """Show until Ctrl-C, which raises KeyboardInterrupt. After a first success, errors that may pass are shown instead."""
    is_screen = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    has_shown = False
    while True:
        began = time.monotonic()
        text = _RoundText(is_terminal=is_screen)
        # On a screen, notes of a round are part of it.
        notes = contextlib.redirect_stderr(text) if is_screen else contextlib.nullcontext()
        try:
            # `stack status` exits with 1 while a program is not ready.
            with contextlib.redirect_stdout(text), contextlib.suppress(click.exceptions.Exit), notes:
                show()
        except errors.AimeshError as error:
            if not (has_shown and error.retryable):
                raise
            printing.show_error(errors.code_of(error), error.message, "trying again", as_json=print_format.current() is PrintFormat.JSON)
        else:
            _print(text.getvalue(), is_screen=is_screen, is_first=not has_shown)
            has_shown = True
        time.sleep(max(0.0, began + EVERY_SECONDS - time.monotonic()))


def _print(text: str, *, is_screen: bool, is_first: bool) -> None:
    if is_screen:
        rows = text.splitlines()[: max(1, shutil.get_terminal_size().lines - 1)]
        text = _HOME + "".join(f"{row}{_REST_OF_LINE}\n" for row in rows) + _REST_OF_SCREEN
    elif not is_first and not print_format.current().is_data:
        text = f"\n{text}"
    elif not is_first and print_format.current() is PrintFormat.YAML:
        text = f"---\n{text}"
    sys.stdout.write(text)
    sys.stdout.flush()
