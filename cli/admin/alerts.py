"""`aicli alerts`: list and silence alerts."""

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import click

from cli import option_values
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.printing import TableColumn
from shared import api

if TYPE_CHECKING:
    from shared.api.alerts import Alert

_seconds = option_values.duration("a silence must be", lambda: api.alerts.SilenceAlerts, "seconds")
_LABELS_HELP = "Only alerts with these labels. Write a comma as %2C and a percent sign as %25, as alert emails do."
#: A percent sign without a valid escape.
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_JSON_HELP = 'Print {"alerts": […], "silences": […]}.'


def _read_labels(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse KEY=VALUE for click: several with commas, the option several times. Labels of metrics may contain any character, so special
    ones can be percent-encoded.
    """
    found = {}
    for pair in (pair for value in values for pair in value.split(",")):
        try:
            key, content = (unquote(part, errors="strict") for part in pair.partition("=")[::2])
        except UnicodeDecodeError as error:
            raise click.BadParameter(f"{pair!r}: invalid percent encoding", context, parameter) from error
        if not key or not content or _LONE_PERCENT.search(pair):
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE (write a comma as %2C and a percent sign as %25)", context, parameter)
        found[key] = content
    return found


@click.group(invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@watching.listing_options(_JSON_HELP)
@click.pass_context
@click.pass_obj
def alerts(here: CliContext, context: click.Context, /, *, as_json: bool) -> None:
    """List and silence alerts. Admins only."""
    if context.invoked_subcommand is None:
        _list(here, everything=False, as_json=as_json)


@alerts.command("list")
@click.option("--all", "everything", is_flag=True, help="Include pending alerts and alerts that ended in the last 24 hours.")
@watching.listing_options(_JSON_HELP)
@click.pass_obj
def show(here: CliContext, /, *, everything: bool, as_json: bool) -> None:
    """List firing alerts, most severe first, and silences."""
    _list(here, everything=everything, as_json=as_json)


def _list(here: CliContext, *, everything: bool, as_json: bool) -> None:
    from shared.lists.alerts import SILENCES, STATES, tone

    found = here.call(api.alerts.list_alerts, api.alerts.ListAlerts())
    chosen = [alert for alert in found.alerts if everything or alert.state == "firing"]
    if as_json:
        rows: dict[str, printing.Json] = {
            "alerts": [printing.plain(alert) for alert in chosen],
            "silences": [printing.plain(silence) for silence in found.silences],
        }
        printing.show_json(rows | ({} if found.as_of is None else {"as_of": printing.plain(found.as_of)}), rows=("alerts",))
        return
    columns: list[TableColumn[Alert]] = [
        TableColumn("ID", lambda alert: alert.id),
        TableColumn("ALERT", lambda alert: alert.name),
        TableColumn("SEVERITY", lambda alert: alert.severity, lambda alert: printing.STYLES[tone(alert.severity)]),
        TableColumn("STATE", lambda alert: STATES.get(alert.state, alert.state) + ", silenced" * alert.silenced, rank=3),
        TableColumn("SINCE", lambda alert: printing.ago(alert.since), rank=2),
        TableColumn("SUMMARY", lambda alert: alert.summary, wraps=True, below=True),
        TableColumn("LABELS", lambda alert: printing.names(f"{name}={value}" for name, value in alert.labels.items()), rank=4, wraps=True),
        TableColumn("RUNBOOK", lambda alert: alert.runbook, rank=5),
    ]
    watched = "No alerts in Alertmanager" if found.from_alertmanager else "No alerts"
    if found.watched:
        watched = f"No alerts. The metrics service watches {', '.join(found.watched)}; Prometheus watches more: docs/reference/alerts.md"
    printing.show_rows(chosen, columns, as_json=False, empty=watched)
    if found.silences:
        click.echo()
        printing.show_list(found.silences, SILENCES, as_json=False)
    if found.as_of is not None:
        click.echo(f"As of {printing.ago(found.as_of)} ago: the metrics service cannot read PostgreSQL.", err=True)


@alerts.command()
@click.argument("name", metavar="[ALERT]", default="")
@click.option("--for", "seconds", metavar="TIME", callback=_seconds, default="2h", show_default=True, help="Duration, such as 30m or 7d.")
@click.option("--label", "--labels", "labels", callback=_read_labels, metavar="KEY=VALUE,…", multiple=True, help=_LABELS_HELP)
@click.option("--why", default="", help="Reason, shown to other admins.")
@print_format.output_options("Print the silence as a JSON object.")
@click.pass_obj
def silence(here: CliContext, /, *, name: str, seconds: int, labels: dict[str, str], why: str, as_json: bool) -> None:
    """Silence an alert (or all alerts) for a while. Silenced alerts stay on the list."""
    made = here.call(api.alerts.silence_alerts, api.alerts.SilenceAlerts(seconds, name, labels, why))
    printing.show_message(
        made,
        f"{made.name or 'All alerts'}: silenced until {printing.moment(made.until)}. To end it: aicli alerts unsilence {made.id}",
        as_json=as_json,
    )


@alerts.command()
@click.argument("silence_id", metavar="SILENCE")
@click.pass_obj
def unsilence(here: CliContext, /, *, silence_id: str) -> None:
    """End a silence."""
    here.call(api.alerts.end_silence, api.alerts.EndSilence(silence_id))
    click.echo("Silence ended. Alerts that are still firing notify again.")
