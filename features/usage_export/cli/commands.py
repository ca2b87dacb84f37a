"""`aicli admin usage-export`: show how far the export of usage is."""

import click

from cli.cli_context import CliContext
from cli.output import print_format, printing
from cli.output.exit_codes import ExitCode
from features.usage_export import contract
from shared import amounts


@click.group("usage-export")
def usage_export() -> None:
    """Export usage to billing systems."""


@usage_export.command()
@print_format.output_options("Print the sinks as a JSON object.")
@click.pass_context
@click.pass_obj
def status(here: CliContext, context: click.Context, /, *, as_json: bool) -> None:
    """Show how far each sink is, and whether it agrees with the ledger. Exits with 1 if one of them differs, or has more
    than a restored database knows."""
    state = here.call(contract.read_usage_export, contract.ReadUsageExport())
    if as_json:
        printing.show_json(printing.plain(state))
    elif not state.sinks:
        click.echo("Usage isn't exported. Set USAGE_EXPORT_URL, USAGE_EXPORT_FILE or USAGE_EXPORT_STRIPE_METER of the gateways.")
    else:
        for sink in state.sinks:
            click.echo("\n".join(_lines(sink)))
    if any(sink.difference_tokens or sink.difference_micro or sink.excess for sink in state.sinks):
        context.exit(ExitCode.FAILED)


def _lines(sink: contract.UsageSink) -> list[str]:
    behind = f"{sink.waiting:,} waiting, {amounts.show_duration(sink.lag_seconds)} behind" if sink.lag_seconds else "up to date"
    lines = [f"{sink.name}: {behind}; last sent {printing.moment(sink.sent_at)}"]
    if sink.compared_at is None:
        lines.append("  not compared with the ledger yet")
    else:
        difference = f"{sink.difference_tokens:,} tokens and {sink.difference_micro:,} micro-credits"
        lines.append(f"  difference from the ledger, yesterday and today: {difference} (compared {printing.moment(sink.compared_at)})")
    if sink.excess is not None:
        lines.append(f"  {_total(sink.excess)} more at the receiver since the restore of {printing.moment(sink.excess.found_at)}")
        lines += [
            f"    {one.owner}: {_total(one)} of {one.since:%Y-%m-%d}, acknowledged until {printing.moment(one.acknowledged_at)}"
            for one in sink.excess.accounts
        ]
    if sink.error is not None:
        lines.append(f"  error: {printing.printable(sink.error)}")
    if sink.doubtful_since is not None:
        lines.append(
            f"  the sink may have the next events since {printing.moment(sink.doubtful_since)}; they are sent again with the same ids"
        )
    return lines


def _total(total: contract.UsageTotal) -> str:
    tokens = f"{total.tokens:,} tokens ({total.uncovered_tokens:,} not covered by plans)"
    return f"{amounts.written(total.cost_micro)} credits and {tokens} in {total.events:,} events"
