"""The command `aicli stack restore`."""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import print_format, printing

if TYPE_CHECKING:
    from stack.recovery.restoring.restore import RestoreReport

_DONE_IN_PART = 3
_MOMENTS = (
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S.%fZ",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S.%f%z",
)


STORE_HELP = "The store: a folder, s3://bucket/prefix or gs://bucket/prefix."
store_option = click.option("--from", "address", metavar="URL", help=f"{STORE_HELP} Default: BACKUP_TO.")


@click.command()
@click.argument("which", metavar="BACKUP|latest", required=False)
@store_option
@click.option("--identity", type=click.Path(path_type=Path), help="The file that `aicli stack backup keygen` wrote.")
@click.option("--at", type=click.DateTime(_MOMENTS), metavar="TIME", help="Restore this moment, in UTC: 2026-11-25T02:30:00Z.")
@click.option("--before-upgrade", metavar="VERSION", help="Restore the moment before the upgrade to VERSION.")
@click.option("--replace", is_flag=True, help="Move the present home aside first. It is not deleted.")
@click.option("--strict", is_flag=True, help="Revoke keys and disable accounts that changed within 10 minutes before the moment.")
@click.option("--accept-log-gap", is_flag=True, help="Continue if lines of the recovery log are missing in the store.")
@click.option("--database-restored", is_flag=True, help="The provider has restored the database; restore everything else.")
@click.option("--abort", is_flag=True, help="Remove an unfinished restore, and put the old home back.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@print_format.output_options("Print a JSON object.")
@click.pass_context
def restore(context: click.Context, /, *, which: str | None, address: str | None, identity: Path | None, **options: object) -> None:
    """Build this stack's home from a backup: its database, secrets and settings.

    Without --at, `latest` restores everything that the store has, and BACKUP its own moment. If it is interrupted, run the same command
    again. Exits with 2 if it refuses, and nothing was changed; with 3 if the moment could not be reached completely.
    """
    from stack import stack_home
    from stack.recovery.restoring import restore as restores

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
    report = asyncio.run(restores.restore(home, request, identity, os.environ, show_progress))
    if sys.stderr.isatty():
        click.echo(err=True)
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
        click.echo(f"  not applied   {printing.counted(report.log_lines_unusable, 'line')} of the recovery log, behind the gap")
    if report.strict is not None:
        click.echo(f"  ended         {report.strict.revoked_keys} keys, {report.strict.disabled_users} accounts")
    if report.settle_journals:
        click.echo(f"  not billed    ends of requests in {printing.names(report.settle_journals)}")
    if report.old_home is not None:
        click.echo(f"  old home      {report.old_home}")
    if not report.is_complete:
        click.echo("  incomplete    the write-ahead log ends before what the store had reported")


_shown = ["", -1.0]


def show_progress(what: str, done: int, total: int) -> None:
    """Show on a terminal how far each step is, in whole percents."""
    percent = float(done * 100 // total if total else 100)
    if sys.stderr.isatty() and [what, percent] != _shown:
        click.echo(f"{chr(10) if _shown[0] not in ('', what) else ''}\r  {what}: {percent:.0f} %", nl=False, err=True)
        _shown[:] = [what, percent]
