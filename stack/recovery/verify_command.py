"""The command `aicli stack verify`."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from cli.output import print_format, printing

if TYPE_CHECKING:
    from shared.types import NodeId
    from stack.recovery.restoring.verify import VerifiedBackup

_SIGNED_BY = "# signed by:"


@click.command()
@click.argument("backup", default="latest", metavar="[BACKUP]")
@click.option(
    "--identity", type=click.Path(path_type=Path), help="The file that `aicli stack backup keygen` wrote: opens the secrets, too."
)
@click.option("--from", "address", metavar="URL", help="The store: a folder, s3://bucket/prefix or gs://bucket/prefix. Default: BACKUP_TO.")
@print_format.output_options("Print a JSON object.")
@click.pass_context
def verify(context: click.Context, /, *, backup: str, identity: Path | None, address: str | None, as_json: bool) -> None:
    """Test whether a backup can be restored, with a throw-away database on this machine. The running stack is not touched.

    Checks signatures and digests, restores the database with its write-ahead log, and verifies its pages, its indexes, the ledger and the
    audit log. Without --identity, the secrets are compared with their digest and not opened. Exits with 2 if anything is wrong.
    """
    from shared import errors
    from shared.identity import node_keys
    from shared.stores import objects
    from stack import settings, stack_home
    from stack.recovery import catalog, sealing
    from stack.recovery.restoring import restore as restores
    from stack.recovery.restoring import verify as tests
    from stack.recovery.restoring.recovered_database import RestoreSource

    home = stack_home.locate(os.environ)
    values = settings.read_recorded(home) | os.environ
    address = address or values.get("BACKUP_TO")
    if address is None:
        raise errors.BadSettings("no store is known", hint="give it with --from")
    if "://" not in address and not Path(address).is_dir():
        raise errors.BadSettings(f"there is no folder {address}", hint="is its disk mounted? Give the store with --from")
    signing, own = home.secrets / "recovery.nk", home.secrets / "backup_identity"
    files = [file for file in (identity, own if own.exists() else None) if file is not None]
    identities = tuple(found for file in files for found in sealing.read_identities(file))
    if not identities:
        raise errors.BadSettings("there is no identity that opens the backups", hint="give it with --identity")
    key = node_keys.load(signing) if signing.exists() else None
    keys = _signers(identity) if key is None else {key.id}
    store = objects.open_store(address if "://" in address else str(Path(address).absolute()), restores.credentials(home, os.environ))
    # On the disk of the present database, if there is one.
    work = home.run if home.run.is_dir() else Path(tempfile.gettempdir())

    async def run() -> "VerifiedBackup":
        mesh = await catalog.read_mesh(store, keys)
        if mesh is None:
            raise errors.BadSettings(f"{address} has no backups", hint="give the store with --from")
        source = RestoreSource(store, mesh, identities)
        return await tests.verify(source, backup, work, _show_progress, opens_secrets=identity is not None, key=key)

    result = asyncio.run(run())
    if sys.stderr.isatty():
        click.echo(err=True)
    if as_json:
        printing.show_json(printing.plain(result))
    else:
        _show(result)
    if not result.ok:
        context.exit(2)


def _signers(identity: Path | None) -> "set[NodeId] | None":
    """Return the keys that the identity's file names; None if the store itself has to name them."""
    lines = [] if identity is None else [line.partition(_SIGNED_BY) for line in identity.read_text(encoding="utf-8").splitlines()]
    return {cast("NodeId", key.strip()) for start, found, key in lines if found and not start} or None


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


_shown = [""]


def _show_progress(what: str, done: int, total: int) -> None:
    """Show on a terminal how far each step is, in whole percents."""
    text = f"  {what}: {done * 100 // total if total else 100} %"
    if sys.stderr.isatty() and [text] != _shown:
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        _shown[:] = [text]
