"""`aicli admin audit`: show, export and verify the audit log, on a mesh or from files alone."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import msgspec
from msgspec.structs import replace

from cli import options
from cli.cli_context import CliContext
from cli.output import output_file, print_format, printing, watching
from cli.output.exit_codes import ExitCode
from shared import api, errors
from shared.types import NodeId

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.audit import AuditReport, AuditRow, ChainState, ExportAudit
    from shared.audit_anchors import Anchors
    from shared.audit_chain import ChainVerifier

#: A copy of shared.api.audit.Result, so that `--help` need not import it; a test compares the two.
RESULTS = ("done", "refused", "failed")
#: Every row is read; a log of many millions is better exported and verified here.
_WHOLE_LOG_SECONDS = 3600
_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def audit() -> None:
    """Read, export and verify the audit log."""


@audit.command("list")
@click.option("--chain", metavar="CHAIN", help="Chain: `house`, or the ID of a user or organization.")
@click.option("--actor", metavar="USER", help="Only actions of this user: username, email address or ID.")
@click.option("--action", metavar="ACTION", help="Only this action, such as key.create, or a prefix, such as key.")
@click.option("--result", type=click.Choice(RESULTS), help="Only actions with this result.")
@click.option("--since", type=_MOMENT, help="Start time, in your time zone.")
@click.option("--before", type=_MOMENT, help="End time: use it to get the next page.")
@options.whole_number("--limit", lambda: api.audit.ListAudit, "limit", default=100, help="Maximum number of entries to list.")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_(
    here: CliContext,
    /,
    *,
    chain: str | None,
    actor: str | None,
    action: str | None,
    result: str | None,
    since: datetime | None,
    before: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show the audit log, newest first."""
    from shared.lists.audit import AUDIT

    request = api.audit.ListAudit(
        chain=chain,
        actor=actor,
        action=action,
        result=None if result is None else api.audit.Result(result),
        since=_aware(since),
        before=_aware(before),
        limit=limit,
    )
    printing.show_list(here.call(api.audit.list_audit, request).rows, AUDIT, as_json=as_json)


@audit.command()
@click.option("--chain", metavar="CHAIN", help="Only this chain: `house`, or the ID of a user or organization.")
@click.option("--since", type=_MOMENT, help="Start here instead of at the beginning. `verify` then needs --partial.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, readable only by you, instead of stdout.",
)
@click.pass_obj
def export(here: CliContext, /, *, chain: str | None, since: datetime | None, file: Path | None) -> None:
    """Export the audit log as JSON lines. An auditor can verify the file without access to the mesh."""
    with output_file.open_(file) as out:
        request = api.audit.ExportAudit(chain=chain, since=_aware(since))
        count = here.run(lambda connection: _copy(connection, request, out))
    printing.note(f"{printing.counted(count, 'row')} written{'' if file is None else f' to {file}'}.")


@audit.command()
@click.argument("file", type=_FILE, required=False)
@click.option("--chain", metavar="CHAIN", help="Only this chain: `house`, or the ID of a user or organization.")
@click.option("--anchors", type=_FILE, help="File of signed anchors (AUDIT_ANCHOR_FILE). Needed to detect rows cut off at the end.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Public key that must have signed the anchors. Can be repeated.")
@click.option("--partial", is_flag=True, help="Set this if FILE was exported with --since or --chain.")
@print_format.output_options("Print the findings as a JSON object.")
@click.pass_context
@click.pass_obj
def verify(
    here: CliContext,
    context: click.Context,
    /,
    *,
    file: Path | None,
    chain: str | None,
    anchors: Path | None,
    keys: tuple[str, ...],
    partial: bool,
    as_json: bool,
) -> None:
    """Verify that nobody tampered with the audit log. Exits with 1 and shows the first bad row of each chain if someone did.

    With a FILE written by `export`, no mesh is needed. Without one, auth checks its own log against its anchors.
    """
    if file is None:
        if anchors or keys or partial:
            raise click.UsageError("--anchors, --key and --partial require a FILE; auth uses its own")
        request = api.audit.VerifyAudit(chain=chain)
        report = here.run(lambda connection: connection.call(api.audit.verify_audit, request, deadline_seconds=_WHOLE_LOG_SECONDS))
    else:
        report = _verified(file, _trusted(anchors, keys), chain, partial=partial)
    if as_json:
        printing.show_json(printing.plain(report))
    else:
        _show(report, with_anchors=file is None or anchors is not None, key_given=file is None or bool(keys))
    if not report.is_whole:
        context.exit(ExitCode.FAILED)


def _aware(typed: datetime | None) -> datetime | None:
    return None if typed is None else typed.astimezone()


async def _copy(connection: "CliConnection", request: "ExportAudit", out: BinaryIO) -> int:
    count = 0
    async with connection.stream(api.audit.export_audit, request, deadline_seconds=_WHOLE_LOG_SECONDS) as rows:
        async for row in rows:
            out.write(msgspec.json.encode(row) + b"\n")
            count += 1
    out.flush()
    return count


def _trusted(file: Path | None, keys: tuple[str, ...]) -> "Anchors":
    """Return the anchors of a file signed with these keys, or with any keys. Raises BadRequest for an invalid line."""
    from shared import audit_anchors

    if file is None:
        return audit_anchors.Anchors((), ())
    with file.open("rb") as lines:
        found, unreadable = audit_anchors.read_lines(lines)
    if unreadable:
        raise errors.BadRequest(f"{file}: line {unreadable[0]} is not an anchor", hint="remove the line if a crash left it incomplete")
    return audit_anchors.check(found, [NodeId(key) for key in keys] or audit_anchors.keys_of(found))


def _verified(file: Path, anchors: "Anchors", chain: str | None, *, partial: bool) -> "AuditReport":
    from shared.api.audit import AuditReport, ChainState
    from shared.audit_chain import ChainVerifier

    verifiers = {} if partial else {name: ChainVerifier(name, anchors.checkpoints(name)) for name in anchors.chains()}
    unreadable: list[ChainState] = []
    with file.open("rb") as lines:
        for number, row in _rows(lines):
            if row is None:
                unreadable.append(ChainState("file", 0, number, f"line {number} is not a row of an audit log", 0))
                break
            if row.chain not in verifiers:
                verifiers[row.chain] = ChainVerifier(row.chain, anchors.checkpoints(row.chain), partial=partial)
            verifiers[row.chain].take(row)
    states = [_state(verifier, anchors) for name, verifier in sorted(verifiers.items()) if chain in (None, name)]
    return AuditReport((*unreadable, *states), _signers(anchors))


def _rows(lines: Iterable[bytes]) -> "Iterator[tuple[int, AuditRow | None]]":
    from shared.api.audit import AuditRow

    read = msgspec.json.Decoder(AuditRow).decode
    for number, line in enumerate(lines, start=1):
        try:
            yield number, read(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            yield number, None


def _state(verifier: "ChainVerifier", anchors: "Anchors") -> "ChainState":
    state, forged = verifier.state(), anchors.finding(verifier.chain)
    if state.first_bad is None and forged is not None:
        return replace(state, first_bad=forged.sequence, why=forged.why)
    return state


def _signers(anchors: "Anchors") -> "NodeId":
    """Name the keys in order, if one replaced another."""
    from shared import audit_anchors

    return NodeId(", ".join(audit_anchors.keys_of(anchors.good)))


def _show(report: "AuditReport", *, with_anchors: bool, key_given: bool) -> None:
    chains, rows = printing.counted(len(report.chains), "chain"), printing.counted(sum(state.rows for state in report.chains), "row")
    anchors = printing.counted(sum(state.anchors for state in report.chains), "signed anchor")
    click.echo(f"The audit log is {'intact' if report.is_whole else 'NOT INTACT'}: {chains}, {rows}, {anchors}.")
    for state in report.chains:
        if state.first_bad is not None:
            click.echo(f"  {printing.printable(state.chain)}: row {state.first_bad}: {printing.printable(state.why)}")
        if state.lost:
            click.echo(f"  {printing.printable(state.chain)}: {printing.printable(state.lost)}")
    if report.anchor_key:
        click.echo(f"The anchors are signed with {printing.printable(report.anchor_key)}")
    if not with_anchors:
        printing.note("Without --anchors, rows cut off at the end or a fully rewritten log can't be detected.")
    elif not key_given:
        printing.note("Compare this key with the output of `aicli admin audit verify` on the mesh, or pass it as --key.")
