"""`aicli scale`: how many workers a pool needs."""

import json
import subprocess
import sys

import click

from cli.output import print_format, printing
from shared import errors


@click.group()
def scale() -> None:
    """Plan how many workers each model needs."""


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
