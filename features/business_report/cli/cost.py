"""`aicli cost`: what machines of your own cost beside an API, and the cost tables of the source documents computed again."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import click
import msgspec

from cli.cli_context import CliContext
from cli.options import Command
from cli.output import print_format, printing
from cli.output.printing import TableColumn
from features.business_report.cli.report import first_day
from features.business_report.lists import cost_model, cost_seeds
from features.business_report.lists.cost_model import CostPlan
from features.business_report.lists.cost_seeds import Checked
from shared import api

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.business import BusinessSum

_DEFAULTS = CostPlan()
#: Shown beside the break-even.
_CONVERSATIONS = (1_000, 10_000, 100_000)


class PlanRow(msgspec.Struct, frozen=True):
    """What a number of conversations a month costs."""

    conversations: int
    machines: int
    own: Decimal
    api: Decimal
    own_each: Decimal
    own_per_million_tokens: Decimal


def _plan_options(command: Command) -> Command:
    for field in reversed(cost_model.FIELDS):
        default = str(getattr(_DEFAULTS, field.name))
        command = click.option(f"--{field.option}", field.name, default=default, show_default=True, metavar="NUMBER", help=field.text)(
            command
        )
    return command


@click.group()
def cost() -> None:
    """What machines of your own cost, and when they cost less than an API."""


@cost.command()
@_plan_options
@click.option(
    "--conversations", type=click.IntRange(1, 10**9), multiple=True, help="Conversations a month. Several times for several rows."
)
@click.option("--from-mesh", metavar="TIME", help="Take tokens and conversations from this mesh: 30d, 4w or since a day. Admins only.")
@print_format.output_options("Print a JSON object: capacity, break_even, stays_cheaper_from, rows.")
@click.pass_obj
def plan(here: CliContext, /, *, conversations: tuple[int, ...], from_mesh: str | None, as_json: bool, **numbers: str) -> None:
    """Compare machines of your own with an API, for a month."""
    try:
        planned = cost_model.read(numbers)
        if from_mesh is not None:
            planned, seen = _of_mesh(here, planned, from_mesh)
            conversations = conversations or (seen,)
    except cost_model.WrongNumber as error:
        raise click.BadParameter(str(error), param_hint=f"--{error.field.option}") from error
    found = planned.break_even()
    wanted = sorted({*(conversations or _CONVERSATIONS), *(found[:1] if found else ())})
    rows = [_row(planned, number) for number in wanted]
    first, stays = found or (None, None)
    if as_json:
        printing.show_json(
            {"capacity": planned.capacity, "break_even": first, "stays_cheaper_from": stays, "rows": printing.plain(rows)}, rows=("rows",)
        )
        return
    printing.show_rows(rows, _PLAN_COLUMNS, as_json=False, empty="")
    for sentence in planned.verdict():
        click.echo(sentence)


@cost.command()
@print_format.output_options("Print JSON objects: what, said, computed, difference, remark.")
@click.pass_obj
def seeds(_here: CliContext, /, *, as_json: bool) -> None:
    """Compute the cost tables of the source documents again."""
    found = cost_seeds.checked()
    if as_json:
        printing.show_json([{**msgspec.to_builtins(row), "difference": printing.plain(row.difference)} for row in found])
        return
    printing.show_rows(found, _SEED_COLUMNS, as_json=False, empty="")


def _row(planned: CostPlan, conversations: int) -> PlanRow:
    own = planned.own(conversations)
    tokens = conversations * (planned.input_tokens + planned.output_tokens)
    return PlanRow(
        conversations, planned.machines(conversations), _cents(own), _cents(planned.api(conversations)), round(own / conversations, 4),
        _cents(own * 1_000_000 / tokens),
    )  # fmt: skip


def _of_mesh(here: CliContext, planned: CostPlan, since: str) -> tuple[CostPlan, int]:
    """Return the plan with the mesh's conversations, and how many it has in a month."""
    today = datetime.now(UTC).date()
    try:
        first = first_day(since, today)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--from-mesh") from error
    total = here.run(lambda connection: _total(connection, first, today + timedelta(days=1)))
    found = planned.of_mesh(total.prompt_tokens, total.completion_tokens, total.conversations, (today - first).days + 1)
    if found is None:
        raise click.UsageError(f"nobody has asked this mesh since {first}; leave out --from-mesh")
    return found


async def _total(connection: "CliConnection", since: date, until: date) -> "BusinessSum":
    report = await connection.call(api.business.get_business_report, api.business.GetBusinessReport(since, until))
    return report.total


def _cents(amount: Decimal) -> Decimal:
    return round(amount, 2)


def _shown(amount: Decimal | None) -> str:
    return "–" if amount is None else cost_seeds.shown(amount)


_PLAN_COLUMNS: Sequence[TableColumn[PlanRow]] = (
    TableColumn("CONVERSATIONS", lambda row: f"{row.conversations:,}"),
    TableColumn("MACHINES", lambda row: f"{row.machines:,}"),
    TableColumn("YOUR OWN", lambda row: _shown(row.own)),
    TableColumn("API", lambda row: _shown(row.api)),
    TableColumn("EACH", lambda row: f"{row.own_each:f}"),
    TableColumn("PER 1M TOKENS", lambda row: _shown(row.own_per_million_tokens)),
)
_SEED_COLUMNS: Sequence[TableColumn[Checked]] = (
    TableColumn("WHAT", lambda row: row.what),
    TableColumn("SOURCE SAYS", lambda row: _shown(row.said)),
    TableColumn("COMPUTED", lambda row: _shown(row.computed)),
    TableColumn("DIFFERENCE", lambda row: _shown(row.difference)),
    TableColumn("REMARK", lambda row: row.remark),
)
