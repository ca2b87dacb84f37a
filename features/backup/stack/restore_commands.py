"""The commands `aicli stack restore` and `verify`. Each imports what it needs when it runs."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_format, printing
from stack import stack_home

if TYPE_CHECKING:
    from features.backup.stack.restoring.restore import RestoreReport
    from features.backup.stack.restoring.verify import VerifiedBackup

_DONE_IN_PART = 3
_MOMENTS = (
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z",
)
_STORE_HELP = "The store: a folder, s3://bucket/prefix or gs://bucket/prefix."
store_option = click.option("--from", "address", metavar="URL", help=f"{_STORE_HELP} Default: BACKUP_TO.")


@click.command()
@click.argument("which", metavar="BACKUP|latest", required=False)
@store_option
@click.option("--identity", type=click.Path(path_type=Path), help="The file that `aicli stack backup keygen` wrote.")
@click.option("--at", type=click.DateTime(_MOMENTS), metavar="TIME", help="Restore this moment, in UTC: 2026-11-25T02:30:00Z.")
@click.option("--before-upgrade", metavar="VERSION", help="Restore the moment before the upgrade to VERSION.")
@click.option("--replace", is_flag=True, help="Move the current home aside first; it isn't deleted.")
@click.option("--strict", is_flag=True, help="Revoke keys and disable accounts that changed within 10 minutes before the moment.")
@click.option("--accept-log-gap", is_flag=True, help="Continue if lines of the recovery log are missing or damaged in the store.")
@click.option("--database-restored", is_flag=True, help="The provider has restored the database; restore everything else.")
@click.option("--abort", is_flag=True, help="Remove an unfinished restore, and put the old home back.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@print_format.output_options("Print a JSON object.")
@click.pass_context
def restore(context: click.Context, /, *, which: str | None, address: str | None, identity: Path | None, **options: object) -> None:
    """Restore this stack's home from a backup: its database, secrets and settings.

    Without --at, `latest` restores everything that the store has, and BACKUP its own moment. If it is interrupted, run the same command
    again. Exits with 2 if it refuses, and nothing was changed; with 3 if the moment could not be reached completely.
    """
    from features.backup.stack.restoring import restore as restores

    home = stack_home.locate(os.environ)
    as_json = bool(options["as_json"])
    if options["abort"]:
        said = asyncio.run(restores.abort(home))
        printing.show_json({"aborted": said}) if as_json else click.echo(said)
        return
    if which is None or identity is None:
        raise click.UsageError("name a BACKUP or `latest`, and --identity FILE")
    at = options["at"]
    request = restores.RestoreRequest(
        which=which,
        address=restores.find_store(home, address, os.environ),
        at=_in_utc(at) if isinstance(at, datetime) else None,
        before_upgrade=str(options["before_upgrade"]) if options["before_upgrade"] else None,
        replaces=bool(options["replace"]),
        is_strict=bool(options["strict"]),
        accepts_log_gap=bool(options["accept_log_gap"]),
        database_restored=bool(options["database_restored"]),
    )
    if not options["yes"]:
        moment = request.at or (request.before_upgrade and f"the moment before the upgrade to {request.before_upgrade}") or which
        click.confirm(f"Restore {moment} to {home.root}? What was committed later is lost.", abort=True, err=True)
    with _progress() as progress:
        report = asyncio.run(restores.restore(home, request, identity, os.environ, progress))
    if as_json:
        printing.show_json(printing.plain(report))
    else:
        _show(report, home.root)
    if not report.is_complete:
        context.exit(_DONE_IN_PART)


def _in_utc(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _show(report: "RestoreReport", root: Path) -> None:
    click.echo(f"{root} was restored from {report.backup} in {report.seconds:.0f} s; start it with: make up")
    if report.reached_at is not None:
        click.echo(
            f"  database      as of {report.reached_at:%Y-%m-%d %H:%M:%S} UTC; {report.lost_seconds or 0:.0f} s of commits are missing"
        )
    click.echo(f"  recovery log  {printing.counted(report.log_lines_replayed, 'line')} to be applied at the start")
    if report.lost_rows:
        click.echo(f"  audit log     {printing.counted(report.lost_rows, 'row')} lost")
    if report.log_lines_unusable:
        click.echo(f"  not applied   {printing.counted(report.log_lines_unusable, 'line')} of the recovery log, after a gap")
    if report.strict is not None:
        click.echo(f"  ended         {report.strict.revoked_keys} keys, {report.strict.disabled_users} accounts")
    if report.settle_journals:
        click.echo(f"  not billed    ends of requests in {printing.names(report.settle_journals)}")
    if report.old_home is not None:
        click.echo(f"  old home      {report.old_home}")
    if not report.is_complete:
        click.echo("  incomplete    the write-ahead log ends before what the store had reported")


@click.command()
@click.argument("backup", default="latest", metavar="[BACKUP]")
@click.option(
    "--identity", type=click.Path(path_type=Path), help="The file that `aicli stack backup keygen` wrote: opens the secrets, too."
)
@store_option
@print_format.output_options("Print a JSON object.")
@click.pass_context
def verify(context: click.Context, /, *, backup: str, identity: Path | None, address: str | None, as_json: bool) -> None:
    """Test whether a backup can be restored, with a temporary database on this machine. The running stack isn't affected.

    Reads what a restore reads. Checks signatures and digests, restores the database with its write-ahead log, and verifies its pages, its
    indexes, the ledger and the audit log. Without --identity, the secrets are compared with their digest and not opened. Exits with 2 if
    anything is wrong.
    """
    from features.backup.stack.restoring import restore as restores
    from features.backup.stack.restoring import verify as tests
    from shared import errors
    from shared.identity import node_keys
    from stack import secret_files

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
        return await tests.verify(source, backup, work, progress, opens_secrets=identity is not None, key=key)

    with _progress() as progress:
        result = asyncio.run(run())
    if as_json:
        printing.show_json(printing.plain(result))
    else:
        _show_test(result)
    if not result.ok:
        context.exit(2)


def _show_test(result: "VerifiedBackup") -> None:
    if not result.ok:
        click.echo(f"{result.backup} is damaged:")
        for failure in result.failures:
            click.echo(printing.printable(f"  {failure}"))
        return
    opened = "opened" if result.secrets_opened else "digest only; --identity opens them"
    click.echo(f"{result.backup} can be restored")
    click.echo(f"  database   as of {printing.moment(result.reached_at)}; pages and indexes are valid")
    click.echo(f"  ledger     {printing.counted(result.ledger_entries, 'entry', 'entries')}, verified")
    click.echo(f"  audit log  {printing.counted(result.audit_rows, 'row')}, verified; {result.lost_rows} lost")
    click.echo(f"  secrets    {opened}")
    click.echo(f"  restoring  took {result.seconds:.0f} s; with the current data {result.present_seconds:.0f} s")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show on a terminal how far each step is, in whole percents, and end the last line."""
    shown: tuple[str, int] | None = None

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        percent = done * 100 // total if total else 100
        if sys.stderr.isatty() and shown != (what, percent):
            ended = "\n" if shown and shown[0] != what else ""
            click.echo(f"{ended}\r  {what}: {percent} %", nl=False, err=True)
            shown = what, percent

    try:
        yield show
    finally:
        if shown:
            click.echo(err=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


COMMANDS = (restore, verify)
