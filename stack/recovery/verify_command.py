"""The command `aicli stack verify`."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_format, printing
from stack.recovery.restore_commands import show_progress, store_option

if TYPE_CHECKING:
    from stack.recovery.restoring.verify import VerifiedBackup


@click.command()
@click.argument("backup", default="latest", metavar="[BACKUP]")
@click.option(
    "--identity", type=click.Path(path_type=Path), help="The file that `aicli stack backup keygen` wrote: opens the secrets, too."
)
@store_option
@print_format.output_options("Print a JSON object.")
@click.pass_context
def verify(context: click.Context, /, *, backup: str, identity: Path | None, address: str | None, as_json: bool) -> None:
    """Test whether a backup can be restored, with a throw-away database on this machine. The running stack is not touched.

    Checks signatures and digests, restores the database with its write-ahead log, and verifies its pages, its indexes, the ledger and the
    audit log. Without --identity, the secrets are compared with their digest and not opened. Exits with 2 if anything is wrong.
    """
    from shared import errors
    from shared.identity import node_keys
    from stack import secret_files, stack_home
    from stack.recovery.restoring import restore as restores
    from stack.recovery.restoring import verify as tests

    home = stack_home.locate(os.environ)
    store = restores.find_store(home, address, os.environ)
    signing, own = home.secrets / secret_files.RECOVERY_KEY, home.secrets / secret_files.BACKUP_IDENTITY
    files = [file for file in (identity, own if own.exists() else None) if file is not None]
    if not files:
        raise errors.BadSettings("there is no identity that opens the backups", hint="give it with --identity")
    key = node_keys.load(signing) if signing.exists() else None
    # On the disk of the present database, if there is one.
    work = home.run if home.run.is_dir() else Path(tempfile.gettempdir())

    async def run() -> "VerifiedBackup":
        source = await restores.open_source(home, store, files, os.environ)
        return await tests.verify(source, backup, work, show_progress, opens_secrets=identity is not None, key=key)

    result = asyncio.run(run())
    if sys.stderr.isatty():
        click.echo(err=True)
    if as_json:
        printing.show_json(printing.plain(result))
    else:
        _show(result)
    if not result.ok:
        context.exit(2)


def _show(result: "VerifiedBackup") -> None:
    if not result.ok:
        click.echo(f"{result.backup} is damaged:")
        for failure in result.failures:
            click.echo(printing.printable(f"  {failure}"))
        return
    opened = "opened" if result.secrets_opened else "digest only; --identity opens them"
    click.echo(f"{result.backup} can be restored")
    click.echo(f"  database   as of {printing.moment(result.reached_at)}; pages and indexes are right")
    click.echo(f"  ledger     {printing.counted(result.ledger_entries, 'entry', 'entries')}, verified")
    click.echo(f"  audit log  {printing.counted(result.audit_rows, 'row')}, verified; {result.lost_rows} lost")
    click.echo(f"  secrets    {opened}")
    click.echo(f"  restoring  took {result.seconds:.0f} s; with the present data {result.present_seconds:.0f} s")
