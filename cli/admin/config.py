"""`aicli admin config`: apply, export, compare and roll back the configuration."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cli import options, value_completion
from cli.cli_context import CliContext
from cli.options import Command
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api, errors

if TYPE_CHECKING:
    from shared.api.configuration import AppliedConfig, ConfigVersion
    from shared.config_documents import ConfigKind

#: A copy of shared.api.configuration.MAX_FILE_BYTES, so that `--help` need not import it; a test compares the two.
MAX_FILE_BYTES = 960 * 1024
#: A copy of shared.api.configuration.ConfigKind, for the same reason.
KINDS = ("route", "policy", "plan", "model_limit", "default_model", "upstream_price", "deployment", "catalog_model", "server", "trust")
_LIMIT = options.WholeNumber(lambda: api.configuration.ListConfigVersions, "limit")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show the changes without making them.")
_NOTE = click.option("--note", default="", metavar="TEXT", help="Note for the history.")
_REVISION = options.whole_number(
    "--revision",
    lambda: api.configuration.ApplyConfig,
    "expected_revision",
    metavar="N",
    help="Fail if the configuration is at another revision.",
)
_COLORS = {"+": "green", "-": "red", "@": "cyan"}


class _DocumentName(click.ParamType["tuple[ConfigKind, str]"]):
    """KIND/NAME, such as route/assistant."""

    name = "document"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> "tuple[ConfigKind, str]":
        from shared.config_documents import ConfigKind

        kind, _, name = value.partition("/")
        if kind not in KINDS or not name:
            self.fail(f"{value!r} is not KIND/NAME, such as route/assistant; kinds: {', '.join(KINDS)}", param, ctx)
        return ConfigKind(kind), name


def _document(*, required: bool = True) -> Callable[[Command], Command]:
    return click.argument(
        "document", metavar="KIND/NAME", type=_DocumentName(), required=required, shell_complete=value_completion.documents
    )


@click.group()
def config() -> None:
    """Change routes, policies, plans, model limits, servers and the default model while the mesh runs."""


@config.command()
@click.option("-f", "--file", "file", required=True, metavar="FILE", help="YAML file, or - for standard input.")
@click.option("--prune", is_flag=True, help="Also remove administrators' documents that FILE does not name.")
@_REVISION
@_NOTE
@_DRY_RUN
@print_format.output_options("Print the changes as JSON.")
@click.pass_obj
def apply(here: CliContext, /, *, file: str, prune: bool, revision: int | None, note: str, dry_run: bool, as_json: bool) -> None:
    """Apply all documents of FILE, or none if one has a mistake. Other documents don't change.

    A document with the value null is removed.
    """
    request = api.configuration.ApplyConfig(_read(file), expected_revision=revision, dry_run=dry_run, prune=prune, note=note)
    try:
        applied = here.call(api.configuration.apply_config, request)
    except errors.BadRequest as error:
        summary, *mistakes = error.message.splitlines()
        for mistake in mistakes:
            printing.note(mistake)
        raise errors.BadRequest(summary, hint=error.hint) from error
    _show_changes(applied, is_dry=dry_run, as_json=as_json)


@config.command()
@click.pass_obj
def export(here: CliContext, /) -> None:
    """Print all documents as YAML, for `apply -f`."""
    click.echo(printing.printable(here.call(api.configuration.export_config, api.configuration.ExportConfig()).text), nl=False)


@config.command()
@_document(required=False)
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def show(here: CliContext, /, *, document: "tuple[ConfigKind, str] | None", as_json: bool) -> None:
    """List the current documents, or show one as YAML."""
    if document is not None:
        version = _find(here, document, None)
        click.echo(printing.printable(version.body or ""), nl=False)
        return
    request = api.configuration.ListConfigVersions(only_current=True, limit=_LIMIT.max)
    _list(here.call(api.configuration.list_config_versions, request).versions, as_json=as_json, current=True)
    for line in here.call(api.configuration.export_config, api.configuration.ExportConfig()).ignored_settings:
        printing.note(line)


@config.command()
@_document(required=False)
@click.option(
    "--limit",
    type=_LIMIT,
    default=100,
    show_default=True,
    help="Maximum number of versions to list.",
)
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def history(here: CliContext, /, *, document: "tuple[ConfigKind, str] | None", limit: int, as_json: bool) -> None:
    """List versions, newest first: of one document, or of all."""
    kind, name = document or (None, None)
    versions = here.call(api.configuration.list_config_versions, api.configuration.ListConfigVersions(kind, name, limit=limit)).versions
    _list(versions, as_json=as_json, current=False)


@config.command()
@_document()
@click.argument("old", type=click.IntRange(1), required=False)
@click.argument("new", type=click.IntRange(1), required=False)
@click.pass_obj
def diff(here: CliContext, /, *, document: "tuple[ConfigKind, str]", old: int | None, new: int | None) -> None:
    """Compare two versions: by default, the current one with the one before it."""
    after = _find(here, document, new)
    before = _find(here, document, max(1, after.version - 1) if old is None else old)
    _show_diff(before.body, after.body, f"version {before.version}", f"version {after.version}")


@config.command()
@_document()
@click.argument("version", type=click.IntRange(1))
@_REVISION
@_NOTE
@_DRY_RUN
@print_format.output_options("Print the change as JSON.")
@click.pass_obj
def rollback(
    here: CliContext, /, *, document: "tuple[ConfigKind, str]", version: int, revision: int | None, note: str, dry_run: bool, as_json: bool
) -> None:
    """Write a new version with the content of VERSION."""
    request = api.configuration.RollbackConfig(*document, version, expected_revision=revision, dry_run=dry_run, note=note)
    _show_changes(here.call(api.configuration.rollback_config, request), is_dry=dry_run, as_json=as_json)


@config.command("import-environment")
@_DRY_RUN
@print_format.output_options("Print the changes as JSON.")
@click.pass_obj
def import_environment(here: CliContext, /, *, dry_run: bool, as_json: bool) -> None:
    """Write the gateway's settings as new versions, even over documents that were edited."""
    request = api.configuration.ImportEnvironment(dry_run=dry_run)
    _show_changes(here.call(api.configuration.import_environment, request), is_dry=dry_run, as_json=as_json)


def _read(file: str) -> str:
    """Return the text of the file. Raises BadRequest."""
    try:
        with click.open_file(file, "rb") as opened:
            content: bytes = opened.read(MAX_FILE_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise errors.BadRequest(f"{file} can't be read: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise errors.TooLarge(f"{file} has more than {MAX_FILE_BYTES} bytes", hint="split it; documents in neither file stay as they are")
    return text


def _find(here: CliContext, document: "tuple[ConfigKind, str]", version: int | None) -> "ConfigVersion":
    """Return a version with its body; None stands for the current one. Raises NotFound."""
    request = api.configuration.ListConfigVersions(*document, version, bodies=True, limit=1)
    found = here.call(api.configuration.list_config_versions, request).versions
    if not found:
        which = "" if version is None else f"version {version} of "
        raise errors.NotFound(f"there is no {which}{document[0]} {document[1]!r}", hint="see `aicli admin config history`")
    return found[0]


def _show_changes(applied: "AppliedConfig", *, is_dry: bool, as_json: bool) -> None:
    if as_json:
        printing.show_json(printing.plain(applied), rows=("changes",))
        return
    for change in applied.changes:
        title = f"{change.kind} {change.name}"
        click.echo(printing.printable(title if is_dry else f"{title} (version {change.version})"))
        if change.is_cut:
            click.echo("  changed; too much to show here")
        else:
            _show_diff(change.before, change.after, "before", "after")
    for warning in applied.warnings:
        printing.note(f"warning: {printing.printable(warning)}")
    if not applied.changes:
        printing.note(f"No changes. The configuration is at revision {applied.revision}.")
    else:
        printing.note("Dry run: nothing was changed." if is_dry else f"Applied as revision {applied.revision}.")


def _show_diff(before: str | None, after: str | None, old_name: str, new_name: str) -> None:
    import difflib

    for line in difflib.unified_diff((before or "").splitlines(), (after or "").splitlines(), old_name, new_name, lineterm=""):
        color = _COLORS.get(line[:1]) if sys.stdout.isatty() else None
        click.echo(click.style(printing.printable(line), fg=color) if color else printing.printable(line))


def _list(versions: "tuple[ConfigVersion, ...]", *, as_json: bool, current: bool) -> None:
    columns: list[TableColumn[ConfigVersion]] = [
        TableColumn("KIND", lambda version: version.kind),
        TableColumn("NAME", lambda version: version.name),
        TableColumn("VERSION", lambda version: f"{version.version}{'' if current or not version.is_current else ' (current)'}"),
        TableColumn("REVISION", lambda version: str(version.revision), rank=4),
        TableColumn("ORIGIN", lambda version: "removed" if version.removes else version.origin, rank=3),
        TableColumn("NEEDS", lambda version: version.needs_release or "–", rank=4),
        TableColumn("AUTHOR", lambda version: version.author or "–", rank=3),
        TableColumn("SINCE" if current else "TIME", lambda version: printing.moment(version.created_at), rank=2),
        TableColumn("NOTE", lambda version: version.note or "–", rank=5, wraps=True),
    ]
    printing.show_rows(versions, columns, as_json=as_json, empty="No matching versions.")
