"""`aicli doctor`: follow the path of a request step by step; show where it fails and how to fix it."""

import sys
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import printing, watching

if TYPE_CHECKING:
    from cli.doctor.findings import DoctorFinding


@click.command()
@watching.listing_options("Print a JSON list.")
@click.option("--worker", is_flag=True, help="Check a joined worker on this machine instead of the profile.")
@click.option("--state", metavar="DIR", help="State folder of the worker (with --worker). Default: $XDG_STATE_HOME/aimesh/worker.")
@click.pass_context
@click.pass_obj
def doctor(here: CliContext, context: click.Context, /, *, as_json: bool, worker: bool, state: str | None) -> None:
    """Diagnose problems and suggest fixes.

    Checks each step of a request: profile, NATS or Hyperswarm, auth, gateway, workers, models. With --worker, checks how a worker joins
    its mesh: certificate, Hyperswarm, NAT type, auth, clock.

    Exits with 0 if every check passes, otherwise with 1.
    """
    from cli import interrupts

    if state and not worker:
        raise click.UsageError("--state requires --worker")
    findings = interrupts.run(_examine(here, state, worker=worker))
    if as_json:
        printing.show_json([printing.plain(finding) for finding in findings])
    else:
        for finding in findings:
            _show(finding)
    if any(finding.ok is False for finding in findings):
        context.exit(1)


async def _examine(here: CliContext, state: str | None, *, worker: bool) -> "list[DoctorFinding]":
    if not worker:
        from cli.doctor import doctor_checks

        return await doctor_checks.examine(here)
    from cli.doctor import doctor_worker_checks
    from cli.machines import join

    folder = join.locate(here.environment, state, here.folder)
    return [finding async for finding in doctor_worker_checks.examine_worker(folder)]


def _show(finding: "DoctorFinding") -> None:
    words = {True: ("ok", "green"), False: ("WRONG", "red"), None: ("–", "yellow")}
    word, colour = words[finding.ok]
    shown = printing.styled(f"{word:<6}", colour, sys.stdout)
    click.echo(f"{shown} {finding.check:<11} {printing.printable(finding.detail)}".rstrip())
    if finding.hint:
        click.echo(f"{'':<19}{printing.styled('fix: ', 'yellow', sys.stdout)}{printing.printable(finding.hint)}")
