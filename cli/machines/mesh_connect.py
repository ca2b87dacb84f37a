"""`aicli mesh connect`: make this machine a client of a mesh, with only a ticket.

The new key is kept apart until the mesh has accepted it, so that an interrupted attempt can be continued and an existing
profile stays intact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from shared.types import Role

if TYPE_CHECKING:
    from shared.identity.tickets import Ticket


@dataclass(frozen=True, slots=True)
class _Files:
    """The three files of a profile, and the key that is not a member yet."""

    profile: Path

    @property
    def key(self) -> Path:
        return self.profile.with_suffix(".nk")

    @property
    def mesh(self) -> Path:
        return self.profile.with_suffix(".mesh")

    @property
    def new_key(self) -> Path:
        return self.profile.with_suffix(".nk.new")


@click.command()
@click.argument("ticket", metavar="TICKET|-|@FILE")
@click.option("--name", metavar="PROFILE", help="Name of the new profile. Default: the one of --profile, or `default`.")
@click.option("--api-key-stdin", is_flag=True, help="Read your API key from the first line of stdin and save it in the profile.")
@click.option("--force", is_flag=True, help="Replace an existing profile of this name.")
@print_format.output_options("Print a JSON object.")
@click.pass_obj
def connect(here: CliContext, /, ticket: str, *, name: str | None, api_key_stdin: bool, force: bool, as_json: bool) -> None:
    """Create a profile for this machine from a ticket. Works behind any NAT.

    Ask an administrator for the ticket: aicli admin tickets create --role client
    """
    from cli import interrupts, profile
    from cli.account import login
    from cli.machines import join

    if ticket == "-" and api_key_stdin:
        raise click.UsageError("the ticket and the key can't both come from stdin; pass the ticket as @FILE or as an argument")
    name = name or profile.chosen_name(here.environment) or profile.DEFAULT
    files = _Files(profile.place_of(name, here.environment))
    if files.profile.exists() and not force:
        raise click.UsageError(f"profile {name!r} already exists ({files.profile}); choose another --name, or use --force")
    read = join.read_ticket(ticket, here.folder)
    api_key = login.api_key_from_stdin() if api_key_stdin else None
    interrupts.run(_enroll(files, read, printing.note))
    used = profile.Profile(node_key_file=files.key, mesh=read.mesh, nats_url=None, mesh_file=files.mesh, api_key=api_key)
    profile.write(files.profile, used)
    if as_json:
        printing.show_json({"profile": name, "path": str(files.profile), "mesh": read.mesh})
        return
    prefix = "aicli" if name == profile.DEFAULT else f"aicli --profile {name}"
    click.echo(f"The profile {name!r} connects to mesh {printing.printable(read.mesh)} ({files.profile}).")
    if api_key is None:
        click.echo(f"Next: {prefix} login USERNAME, or {prefix} register.")
    click.echo(f'Then: {prefix} infer "Say hello"')


async def _enroll(files: _Files, ticket: "Ticket", report: Callable[[str], None]) -> None:
    """Save key and membership. Raises what ``enrollment.enroll`` raises."""
    import platform

    from cli.machines import join
    from shared.node import enrollment, membership_file

    files.profile.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    found = await join.enroll_new_key(files.new_key, ticket, enrollment.EnrollingNode(Role.CLIENT, platform.node()), report)
    membership_file.save(files.mesh, membership_file.by_ticket(membership_file.of(found), ticket))
    files.new_key.replace(files.key)
