"""`aicli scale`: how many workers a pool needs."""

import json
import subprocess
import sys

import click

from cli import options
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from features.autoscaling import contract
from shared import errors

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
    from features.autoscaling.lists import POOLS

    found = here.call(contract.get_scaling, contract.GetScaling(pool))
    printing.show_list(found.pools, POOLS, as_json=as_json, create="Set POOLS_FILE.")
    if found.problem:
        printing.note(found.problem)


@scale.command()
@_pool
@options.whole_number("--last", lambda: contract.GetScaling, "calls", default=20, help="Number of calls.")
@watching.listing_options("Print a JSON array of calls.")
@click.pass_obj
def history(here: CliContext, /, *, pool: str | None, last: int, as_json: bool) -> None:
    """Show the newest calls of the hooks that start and stop workers."""
    from features.autoscaling.lists import CALLS

    found = here.call(contract.get_scaling, contract.GetScaling(pool, calls=last))
    printing.show_list(found.calls, CALLS, as_json=as_json)


@scale.command()
@click.option("--users", type=click.IntRange(100, 200_000), default=10_000, show_default=True, help="Users, each with 6 requests per hour.")
@click.option("--start", type=click.IntRange(1, 3600), default=150, show_default=True, help="Seconds a new worker takes to start.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another number simulates another day.")
@print_format.output_options("Print a JSON object.")
def simulate(*, users: int, start: int, seed: int, as_json: bool) -> None:
    """Simulate a day with bursts and lost workers: waits and GPU hours, against a Kubernetes HPA and an oracle that knows the future."""
    command = [sys.executable, "-P", "-m", "features.autoscaling.rules.simulation", str(users), str(start), str(seed)]
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
