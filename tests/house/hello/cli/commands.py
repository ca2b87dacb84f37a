"""`aicli hello`."""

import click
from features.hello import contract

from cli.cli_context import CliContext
from cli.output import print_format, printing


@click.command()
@click.argument("name", default="you")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def hello(here: CliContext, /, name: str, *, as_json: bool) -> None:
    """Say hello."""
    said = here.call(contract.say_hello, contract.SayHello(name))
    printing.show_message(said, f"{said.text} ({said.times})", as_json=as_json)
