"""`aicli doctor`: goes the way of a request step by step, and says where it ends and what to do."""

import sys
from typing import TYPE_CHECKING

import click

from cli.surroundings import Surroundings

if TYPE_CHECKING:
    from cli.examination import Finding


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def doctor(context: click.Context, /, *, as_json: bool) -> None:
    """Find out what is wrong, and what to do.

    Goes the way of a request: profile, NATS, auth, gateway, workers, models.

    Exits with 0 if all is well, otherwise with 1.
    """
    from cli import examination, interrupts, output

    here = context.find_object(Surroundings)
    assert here is not None
    findings = interrupts.run(examination.examine(here))
    if as_json:
        output.show_json([output.plain(finding) for finding in findings])
    else:
        for finding in findings:
            _show(finding)
    if any(finding.ok is False for finding in findings):
        context.exit(1)


def _show(finding: "Finding") -> None:
    from cli import output

    words = {True: ("ok", "green"), False: ("WRONG", "red"), None: ("–", "yellow")}
    word, colour = words[finding.ok]
    shown = output.styled(f"{word:<6}", colour, sys.stdout)
    click.echo(f"{shown} {finding.check:<9} {output.printable(finding.detail)}".rstrip())
    if finding.hint:
        click.echo(f"{'':<17}{output.styled('do: ', 'yellow', sys.stdout)}{output.printable(finding.hint)}")
