"""`aicli report`: usage, cost and value of all users, for administrators.

The gateway has the sums and auth has the names; this command combines them.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import click
import msgspec

from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from cli.output.print_format import PrintFormat
from features.business_report.lists import report_rows
from features.business_report.lists.report_rows import ReportLine
from shared import api, errors
from shared.amounts import written
from shared.api.business import BusinessGrouping, BusinessReport, BusinessSum, GetBusinessReport, NewAccounts
from shared.types import MicroCredits

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from cli.output.printing import Json, TableColumn

#: Longer than the gateway's own limit.
_REPORT_SECONDS = 25
_UNITS = {"d": 1, "w": 7}
_KINDS = [grouping.value for grouping in BusinessGrouping]


class FoundReport(msgspec.Struct, frozen=True):
    report: BusinessReport
    lines: tuple[ReportLine, ...]
    #: None if auth did not answer.
    new: NewAccounts | None


def first_day(text: str, today: date) -> date:
    """Parse `7d` (today and the six days before), `4w`, or a date. Raises ValueError with a message for people."""
    number, unit = text[:-1], text[-1:]
    if unit in _UNITS and number.isascii() and number.isdigit() and len(number) <= 5 and int(number) > 0:
        days = int(number) * _UNITS[unit]
        if days < today.toordinal():
            return today - timedelta(days=days - 1)
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text[:30]!r} is not a valid time; use 7d, 4w or a day such as 2026-03-01") from error


def _day(context: click.Context, parameter: click.Parameter, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return first_day(text, datetime.now(UTC).date())
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


_since = click.option(
    "--since", callback=_day, default="7d", show_default=True, metavar="TIME", help="First UTC day: 7d, 4w or 2026-03-01."
)
_until = click.option("--until", callback=_day, metavar="DAY", help="Last UTC day. Default: today.")
_by = click.option("--by", type=click.Choice(_KINDS), default="day", show_default=True, help="Group rows by this.")
_label = click.option("--label", metavar="NAME", help="Label to group by, such as region (with --by label).")
_csv = click.option(
    "--csv",
    is_flag=True,
    expose_value=False,
    callback=print_format.choose(PrintFormat.CSV),
    help="Same as -o csv: amounts in micro-credits and credits.",
)
_json = watching.listing_options("Print a JSON object; amounts in micro-credits.")


def _options(command: Callable[..., None]) -> Callable[..., None]:
    return _since(_until(_by(_label(_csv(_json(command))))))


@click.group()
def report() -> None:
    """Report usage and cost across all users. Admins only, except for a node owner's own statement."""


@report.command()
@_options
@click.pass_obj
def usage(here: CliContext, /, *, since: date, until: date | None, by: str, label: str | None, as_json: bool) -> None:
    """Show requests, tokens, speed, conversations and ratings, grouped by day, user, model, route or machine owner."""
    query = _build_query(since, until, by, label)
    _show(here, query, _USAGE, as_json=as_json)


@report.command()
@_options
@click.pass_obj
def cost(here: CliContext, /, *, since: date, until: date | None, by: str, label: str | None, as_json: bool) -> None:
    """Show the value of tokens at their prices, credits spent, provider costs, and savings by caching and your own machines."""
    query = msgspec.structs.replace(_build_query(since, until, by, label), counts_repeated=True)
    _show(here, query, _COST, as_json=as_json)


@report.command()
@click.option("--month", metavar="MONTH", help="UTC month, such as 2026-11. Default: this month.")
@_csv
@watching.listing_options("Print a JSON list; amounts in micro-credits.")
@click.pass_obj
def owners(here: CliContext, /, *, month: str | None, as_json: bool) -> None:
    """Show requests, earnings and energy of node owners in a month. Node owners see only their own."""
    from features.business_report import contract
    from features.business_report.lists.statements import list_statements

    wanted = contract.GetOwnerStatements(month or f"{datetime.now(UTC):%Y-%m}")
    found = here.run(lambda connection: connection.call(contract.get_owner_statements, wanted, deadline_seconds=_REPORT_SECONDS))
    if found.missing:
        printing.note(f"the energy is unknown: {found.missing}")
    printing.show_list(found.rows, list_statements(found.rows), as_json=as_json)


def _build_query(since: date, until: date | None, by: str, label: str | None) -> GetBusinessReport:
    last = until or datetime.now(UTC).date()
    if last < since:
        raise click.UsageError(f"--since {since} is after the last day, {last}")
    if label is not None and by != BusinessGrouping.LABEL:
        raise click.UsageError("--label requires --by label")
    return GetBusinessReport(since, last + timedelta(days=1), BusinessGrouping(by), label)


def _show(here: CliContext, query: GetBusinessReport, cells: Mapping[str, Callable[[BusinessSum], str]], *, as_json: bool) -> None:
    found = here.run(lambda connection: _fetch(connection, query))
    if found.report.more:
        printing.note(f"only the first {len(found.lines)} rows are shown; totals include all rows")
    if print_format.current() is PrintFormat.CSV:
        click.echo(written_csv(query.by, found.lines), nl=False)
        return
    if as_json:
        printing.show_json({**_plain(query), **_plain(found.report), "rows": printing.plain(found.lines), "new": printing.plain(found.new)})
        return
    columns: list[TableColumn[ReportLine]] = [printing.TableColumn(query.by.upper(), lambda line: line.name or "–")]
    columns += [
        printing.TableColumn(title, lambda line, cell=cell: cell(line.sum), rank=RANKS.get(title, 1))  # type: ignore[misc]
        for title, cell in cells.items()
        if title not in _OF_PROVIDERS or found.report.total.upstream_micro or found.report.total.avoided_micro
    ]
    lines = [*found.lines, ReportLine("all", found.report.total)] if found.lines else []
    nothing = "No requests in this period. Try a longer one, such as --since 30d, or send one: aicli infer hello"
    printing.show_rows(lines, columns, as_json=False, empty=nothing)
    for line in _below(found):
        click.echo(line)


def _plain(value: msgspec.Struct) -> "dict[str, Json]":
    built = printing.plain(value)
    assert isinstance(built, dict)
    return built


async def _fetch(connection: "CliConnection", query: GetBusinessReport) -> FoundReport:
    found = await connection.call(api.business.get_business_report, query, deadline_seconds=_REPORT_SECONDS)
    ids = report_rows.ids_in(found, query.by)
    names: Mapping[str, str] = {}
    new = None
    try:
        new = await connection.call(api.business.count_new_accounts, api.business.CountNewAccounts(query.since, query.until))
        if ids:
            names = (await connection.call(api.business.name_users, api.business.NameUsers(ids))).names
    except (errors.NotReachable, errors.Unavailable, errors.DeadlineExceeded) as error:
        printing.note(f"auth isn't answering, so names and new accounts are missing: {error.message}")
    return FoundReport(found, report_rows.lines(found, query, names), new)


def _each(micro: MicroCredits, number: int) -> str:
    each = report_rows.each(micro, number)
    return "–" if each is None else written(each)


def _speed(row: BusinessSum) -> str:
    speed = report_rows.tokens_per_second(row)
    return "–" if speed is None else f"{speed:.1f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


_USAGE: Mapping[str, Callable[[BusinessSum], str]] = {
    "REQUESTS": lambda row: str(row.requests),
    "FAILED": lambda row: str(row.failed + row.timed_out),
    "LIMITED": lambda row: str(row.limited),
    "TOKENS IN": lambda row: str(row.prompt_tokens),
    "OUT": lambda row: str(row.completion_tokens),
    "TOKENS/S": _speed,
    "CACHED": lambda row: _share(row.cached, row.requests),
    "CONVERSATIONS": lambda row: str(row.conversations),
    "USERS": lambda row: str(row.users),
    "LIKED": lambda row: f"{row.thumbs_up} of {row.thumbs_up + row.thumbs_down}" if row.thumbs_up + row.thumbs_down else "–",
}
_COST: Mapping[str, Callable[[BusinessSum], str]] = {
    "REQUESTS": lambda row: str(row.requests),
    "TOKEN VALUE": lambda row: written(row.token_value_micro),
    "FROM BALANCES": lambda row: written(row.cost_micro),
    "UPSTREAM": lambda row: written(row.upstream_micro),
    "AVOIDED": lambda row: written(row.avoided_micro),
    "INTERNAL": lambda row: _share(row.succeeded - row.external, row.succeeded),
    "PER REQUEST": lambda row: _each(row.cost_micro, row.requests),
    "PER CONVERSATION": lambda row: _each(row.cost_micro, row.conversations),
    "CACHED": lambda row: _share(row.cached, row.requests),
    "SAVED": lambda row: written(row.saved_micro),
}


#: Columns that are only shown if there is money of providers.
_OF_PROVIDERS = ("UPSTREAM", "AVOIDED", "INTERNAL")
#: The least important columns first, and what they count.
_HIDDEN_FIRST = (
    "LIKED",
    "LIMITED",
    "CACHED",
    "SAVED",
    "USERS",
    "CONVERSATIONS",
    "PER CONVERSATION",
    "TOKENS/S",
    "FAILED",
    "PER REQUEST",
    "INTERNAL",
)
RANKS = {title: 2 + rank for rank, title in enumerate(reversed(_HIDDEN_FIRST))}


def _below(found: FoundReport) -> list[str]:
    """Return the lines below the table: totals and current figures."""
    totals, active = found.report, found.report.active
    back = f" ({written(totals.given_back_micro)} refunded)" if totals.given_back_micro else ""
    lines = [
        "",
        f"from balances {written(report_rows.from_balances(totals))} credits{back}",
        f"active users  {active.hour} in the last hour, {active.day} in 24 hours, {active.week} in 7 days, {active.month} in 30 days",
    ]
    if (reduction := report_rows.reduction(totals.total)) is not None:
        upstream, avoided = written(totals.total.upstream_micro), written(totals.total.avoided_micro)
        lines.append(f"upstream      {upstream} credits to providers, {avoided} avoided: {100 * reduction:.0f} % less")
    if totals.repeated is not None:
        cached, asked = totals.total.cached, totals.total.requests
        of_repeated = f"{_share(cached, totals.repeated)} of {printing.counted(totals.repeated, 'repeated question')}"
        lines.append(f"cache         {cached} answers: {_share(cached, asked)} of all requests, {of_repeated}")
    if found.new is not None:
        users, keys = report_rows.registered(found.new), report_rows.keys_made(found.new)
        lines.append(f"new           {users} registered, {printing.counted(keys, 'key')} created")
    return lines


def written_csv(by: BusinessGrouping, lines: Sequence[ReportLine]) -> str:
    """Write exact numbers, without a line of sums, which a spreadsheet would add again."""
    return printing.csv_text(report_rows.head(by), map(report_rows.cells, lines))
