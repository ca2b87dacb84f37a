"""The commands of `aicli stack` for backup and restore. Each imports what it needs when it runs, so that other commands start fast."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_format, printing
from cli.output.printing import TableColumn
from features.backup.stack import restore_commands
from features.backup.stack.restore_commands import store_option
from stack import stack_home

if TYPE_CHECKING:
    from features.backup.contract import BackupEntry
    from features.backup.stack.agent.source_database import SourceDatabase
    from features.backup.stack.backup_place import BackupPlace
    from features.backup.stack.layout import BackupManifest

_MB = 1_000_000
#: For the backup that the agent makes: `make up` with a new store starts one.
_PATIENCE_SECONDS = 24 * 3600.0


async def _open(home: stack_home.StackHome) -> "tuple[BackupPlace, SourceDatabase | None]":
    """Open the store and the database of this stack, as its agent does. Raises BadSettings."""
    from features.backup.settings import BackupSettings
    from features.backup.stack import agent_program, backup_place
    from features.backup.stack.agent.source_database import SourceDatabase
    from shared import config, errors
    from stack import settings
    from stack.features import StackSite

    recorded = settings.read_recorded(home)
    loaded = settings.load(recorded)
    if not home.run.is_dir():
        raise errors.BadSettings(f"there is no stack in {home.root}", hint="start it with: make up")
    chosen = config.load(BackupSettings, agent_program.environment(StackSite(home=home, settings=loaded, recorded=recorded)))
    place = await backup_place.open_place(home, chosen, loaded.mesh)
    source = SourceDatabase(chosen.backup_database_url or "", home.run) if chosen.streams_database else None
    return place, source


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@click.option("--label", default="", metavar="TEXT", help="Note for the list of backups.")
@print_format.output_options("Print a JSON object.")
@click.pass_context
def backup(context: click.Context, /, *, label: str, as_json: bool) -> None:
    """Make a backup now, in addition to the daily one. BACKUP_TO must be set, and the stack must be running.

    If the agent is making one, this waits for it and then makes its own.
    """
    if context.invoked_subcommand is not None:
        return
    from features.backup.stack import backup_place
    from features.backup.stack.agent import base_backup

    if len(label) > 200:
        raise click.UsageError("a label has at most 200 characters")

    async def make() -> "tuple[BackupPlace, BackupManifest]":
        place, source = await _open(stack_home.locate(os.environ))
        return place, await base_backup.make(place, source, label=label, report=_report_progress(), patience_seconds=_PATIENCE_SECONDS)

    place, made = asyncio.run(make())
    if as_json:
        shown = {"name": made.name, "label": made.label, "at": made.finished_at, "size_bytes": made.size, "seconds": made.seconds}
        printing.show_json(printing.plain({**shown, "signed_by": place.key.id}))
        return
    click.echo(f"{made.name}: {made.size / _MB:.1f} MB in {made.seconds:.0f} s")
    if backup_place.is_first_use(place.home):
        printing.note(
            f"Add this line to the file of your identity. A restore then refuses what others have signed:\n# signed by: {place.key.id}"
        )


def _report_progress() -> Callable[[int], None]:
    """Show on a terminal how far the copy is, about twice a second."""
    shown_at = 0.0

    def report(copied: int) -> None:
        nonlocal shown_at
        if sys.stderr.isatty() and time.monotonic() - shown_at > 0.5:
            shown_at = time.monotonic()
            click.echo(f"\r  {copied / _MB:.0f} MB of the database copied", nl=False, err=True)

    return report


@backup.command()
@click.argument("file", type=click.Path(path_type=Path))
@print_format.output_options("Print a JSON object.")
def keygen(file: Path, *, as_json: bool) -> None:
    """Create the identity that opens backups, and print its recipient for BACKUP_RECIPIENTS.

    Keep FILE away from this machine, such as on a USB stick: without it, a lost machine cannot be restored.
    """
    from features.backup.stack import sealing

    home = stack_home.locate(os.environ)
    if file.resolve().is_relative_to(home.root.resolve()):
        raise click.UsageError(f"{file} is in {home.root}, and would be lost with it; write it to another disk")
    identity = sealing.new_identity()
    recipient = sealing.recipient_of(identity)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise click.UsageError(f"{file} exists, and may be the only key of your backups; choose another name") from None
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "w", encoding="ascii") as opened:
        opened.write(f"# public key: {recipient}\n{identity}\n")
        opened.flush()
        os.fsync(opened.fileno())
    if as_json:
        printing.show_json({"file": str(file), "recipient": recipient})
        return
    click.echo(recipient)


@click.command()
@print_format.output_options("Print a JSON object.")
def backups(*, as_json: bool) -> None:
    """List the backups in BACKUP_TO, newest first, and the times that you can restore."""
    from features.backup.stack import backup_listing

    async def read() -> backup_listing.BackupListing:
        place, _ = await _open(stack_home.locate(os.environ))
        return await backup_listing.read(place)

    found = asyncio.run(read())
    if as_json:
        printing.show_json(printing.plain(found), rows=("backups",))
        return
    columns: list[TableColumn[BackupEntry]] = [
        TableColumn("BACKUP", lambda row: row.name),
        TableColumn("TIME", lambda row: printing.moment(row.at)),
        TableColumn("SIZE", lambda row: f"{row.size_bytes / _MB:.1f} MB"),
        TableColumn("VERIFIED", lambda row: printing.moment(row.verified_at)),
        TableColumn("LABEL", lambda row: row.label, wraps=True),
    ]
    printing.show_rows(found.backups, columns, as_json=False, empty="there is no backup yet; make one with: aicli stack backup")
    if found.recoverable_from is not None:
        printing.note(
            f"any second can be restored from {printing.moment(found.recoverable_from)} to {printing.moment(found.recoverable_until)}"
        )
    for hole in found.holes:
        end = "now" if hole.until is None else printing.moment(hole.until)
        printing.note(f"but not between {printing.moment(hole.since)} and {end}: {hole.missing} is missing")


@click.command("fetch-log")
@store_option
@click.option("--identity", type=click.Path(path_type=Path), help="File of an identity that opens backups. Default: this stack's own.")
@print_format.output_options("Print a JSON object.")
def fetch_log(address: str | None, identity: Path | None, *, as_json: bool) -> None:
    """Write the recovery logs and audit anchors in the store to RECOVERY_LOG_DIR.

    If the disks of your containers don't last, run this before auth and the gateway start, and don't start them if it fails: keys that
    you revoked could work again.
    """
    from features.backup.stack.restoring import restore, restored_log
    from stack import secret_files, settings

    home = stack_home.locate(os.environ)
    known = {**settings.read_recorded(home), **os.environ}
    store = restore.find_store(home, address, os.environ)
    identity = identity or home.secrets / secret_files.BACKUP_IDENTITY
    folder = Path(known.get("RECOVERY_LOG_DIR") or home.recovery_log)
    anchors = Path(known.get("AUDIT_ANCHOR_FILE") or folder / home.audit_anchors.name)

    async def fetch() -> None:
        source = await restore.open_source(home, store, (identity,), os.environ)
        await restored_log.fetch_into(folder, anchors, source, home)

    asyncio.run(fetch())
    printing.show_json({"folder": str(folder)}) if as_json else click.echo(f"the recovery logs are in {folder}")


COMMANDS = (backup, backups, fetch_log, *restore_commands.COMMANDS)
