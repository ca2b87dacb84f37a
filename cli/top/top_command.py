"""`aicli top`: poll the mesh and show each frame on the screen, as plain text, or as a line of JSON."""

import asyncio
import json
import math
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from cli.output.print_format import PrintFormat

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from cli.top.frame import TopFrame
    from cli.top.readings import MeshReadings


def _refuse_nan(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    """click's range check accepts it, because nan is not outside any range."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number of seconds")
    return value


@click.command()
@click.option(
    "--every",
    "seconds",
    type=click.FloatRange(0.5, 3600),
    callback=_refuse_nan,
    default=2.0,
    show_default=True,
    help="Refresh interval in seconds.",
)
@click.option("--once", is_flag=True, help="Print one frame as plain text and exit. This is the default when stdout is not a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print each frame as one JSON object per line.")
@click.pass_obj
def top(here: CliContext, /, *, seconds: float, once: bool, as_json: bool) -> None:
    """Live view of the mesh: health, alerts, requests, tokens, queues and nodes. Admins only.

    Rates and loads cover the last 15 seconds. Press `s` to change the sort column, arrow keys, Page Up/Down, Home or End to scroll, and
    `q` or Ctrl-C to quit.
    """
    from cli.top.terminal import Terminal

    terminal = Terminal(sys.stdin, sys.stdout)
    as_json = as_json or print_format.current() is PrintFormat.JSON

    async def work(connection: "CliConnection") -> None:
        if as_json:
            await _print_objects(connection, seconds, once=once)
        elif once or not terminal.is_screen():
            await _print_once(connection)
        else:
            from cli.top.live_view import LiveView

            await LiveView(connection, seconds, terminal).run()

    try:
        here.run(work)
    except KeyboardInterrupt:
        # Ctrl-C is the normal way to quit.
        return


async def _print_once(connection: "CliConnection") -> None:
    from cli.top import readings, text_view
    from cli.top.sources import Sources

    seen = await Sources(connection, time.monotonic).look()
    if (error := readings.why_nothing(seen)) is not None:
        raise error
    for line in text_view.whole(_frame(seen)):
        click.echo(line)


async def _print_objects(connection: "CliConnection", seconds: float, *, once: bool) -> None:
    from cli.output.stdout_writer import StdoutWriter
    from cli.top import readings
    from cli.top.sources import Sources

    sources, outlet = Sources(connection, time.monotonic), StdoutWriter(sys.stdout)
    while True:
        began = time.monotonic()
        seen = await sources.look()
        if once and (error := readings.why_nothing(seen)) is not None:
            raise error
        await outlet.write(json.dumps(printing.plain(_frame(seen)), ensure_ascii=False) + "\n")
        if once:
            return
        await asyncio.sleep(began + seconds - time.monotonic())


def _frame(seen: "MeshReadings") -> "TopFrame":
    from cli.top import frame

    return frame.make(seen, time.monotonic(), datetime.now(UTC))
