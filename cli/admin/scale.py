"""`aicli scale`: how many workers a pool needs."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from cli import options
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api, errors

if TYPE_CHECKING:
    from shared.api.metrics import PoolScaling, ScaleCallEntry

_pool = click.option("--pool", metavar="POOL", help="Only this pool.")


@click.group()
def scale() -> None:
    """Show and plan how many workers each model needs."""


@scale.command()
@_pool
@watching.listing_options("Print a JSON array of pools.")
@click.pass_obj
def status(here: CliContext, /, *, pool: str | None, as_json: bool) -> None:
    """Show the pools of workers: how many are ready, how many should be, and why."""
    found = here.call(api.metrics.get_scaling, api.metrics.GetScaling(pool))
    columns: list[TableColumn[PoolScaling]] = [
        TableColumn("POOL", lambda one: one.pool),
        TableColumn("READY", lambda one: str(one.ready)),
        TableColumn("STARTING", lambda one: str(one.starting), rank=2),
        TableColumn("WANTED", lambda one: str(one.wanted) if one.as_of else "–", lambda one: "" if one.fresh else "yellow"),
        TableColumn("BOUNDS", lambda one: f"{one.min}–{one.max}", rank=4),
        TableColumn("WAITING", lambda one: str(one.waiting), rank=1),
        TableColumn("OLDEST", lambda one: f"{one.oldest_seconds:.0f} s", rank=5),
        TableColumn("COST PER HOUR", lambda one: f"{one.cost_per_hour:,.2f}", rank=3),
        TableColumn("AS OF", lambda one: printing.ago(one.as_of) if one.as_of else "never", rank=6),
        TableColumn("REASON", _reason, wraps=True, below=True),
    ]
    printing.show_rows(found.pools, columns, as_json=as_json, empty="No pools; set POOLS_FILE")
    if found.problem:
        printing.note(found.problem)


def _reason(pool: "PoolScaling") -> str:
    return pool.reason if pool.fresh else f"no fresh data, so nothing changes; last: {pool.reason}"


@scale.command()
@_pool
@options.whole_number("--last", lambda: api.metrics.GetScaling, "calls", default=20, help="Number of calls.")
@watching.listing_options("Print a JSON array of calls.")
@click.pass_obj
def history(here: CliContext, /, *, pool: str | None, last: int, as_json: bool) -> None:
    """Show the newest calls of the hooks that start and stop workers."""
    found = here.call(api.metrics.get_scaling, api.metrics.GetScaling(pool, calls=last))
    columns: list[TableColumn[ScaleCallEntry]] = [
        TableColumn("WHEN", lambda one: printing.ago(one.at)),
        TableColumn("POOL", lambda one: one.pool),
        TableColumn("CHANGE", lambda one: f"{one.current} → {one.wanted}"),
        TableColumn("RESULT", lambda one: one.state.value, lambda one: "red" if one.state.value == "failed" else ""),
        TableColumn("ATTEMPTS", lambda one: str(one.attempts), rank=2),
        TableColumn("PROBLEM", lambda one: one.problem, rank=1, wraps=True),
        TableColumn("REASON", lambda one: one.reason, wraps=True, below=True),
    ]
    printing.show_rows(found.calls, columns, as_json=as_json, empty="No calls yet")


@scale.command()
@click.option("--users", type=click.IntRange(100, 200_000), default=10_000, show_default=True, help="Users, each with 6 requests per hour.")
@click.option("--start", type=click.IntRange(1, 3600), default=150, show_default=True, help="Seconds a new worker takes to start.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another number simulates another day.")
@print_format.output_options("Print a JSON object.")
def simulate(*, users: int, start: int, seed: int, as_json: bool) -> None:
    """Simulate a day with bursts and lost workers: waits and GPU hours, against a Kubernetes HPA and an oracle that knows the future."""
    command = [sys.executable, "-P", "-m", "services.metrics.scaling.simulation", str(users), str(start), str(seed)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=False)  # noqa: S603 - our own program
    if ended.returncode:
        raise errors.Internal(f"the simulation ended with status {ended.returncode}")
    days = json.loads(ended.stdout)
    if as_json:
        printing.show_json(days)
        return
    for name, day in days.items():
        wait = "" if name == "oracle" else f"   p95 wait {day['p95_wait_seconds']:.0f} s"
        click.echo(f"{name:<16}{day['gpu_hours']:>10,.0f} GPU hours{day['gpu_hours'] / days['oracle']['gpu_hours']:>7.2f} × oracle{wait}")
