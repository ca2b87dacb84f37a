"""`aicli admin rollouts`: move a route's traffic to another target step by step, or compare two targets."""

import re
from datetime import UTC, datetime, timedelta

import click

from cli import option_values, options, value_completion
from cli.cli_context import CliContext
from cli.output import print_format, printing, watching
from shared import api

_seconds = option_values.duration("a step takes", lambda: api.configuration.RolloutTerms, "step_seconds")


def _read_percents(context: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of percentages such as 10,50,100", context, parameter) from error


def _read_until(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    if re.fullmatch(r"\d+ *[a-z]+", value):
        return datetime.now(UTC) + timedelta(seconds=option_values.read_seconds(context, parameter, value))
    try:
        found = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a time such as 2d or 2026-12-01T12:00Z", context, parameter) from error
    return found if found.tzinfo is not None else found.astimezone()


def _read_guards(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> "dict[str, float | None]":
    """Parse NAME=VALUE, such as errors=1%, cost=1.2 or thumbs=off."""
    found: dict[str, float | None] = {}
    for value in values:
        name, _, text = value.partition("=")
        number = re.fullmatch(r"(\d{1,5}(?:\.\d{1,4})?)(%?)", text)
        if (
            name not in api.configuration.RolloutGuards.__struct_fields__
            or not (number or text == "off")
            or (number and name == "cost" and number[2])
        ):
            raise click.BadParameter(f"{value!r} is not a guard such as errors=1%, cost=1.2 or thumbs=off", context, parameter)
        found[name] = None if number is None else float(number[1])
    return found


@click.group()
def rollouts() -> None:
    """Move the traffic of a route to another target step by step, or compare two targets.

    If the new target does worse than the one it replaces, the gateway rolls the rollout back automatically.
    """


@rollouts.command()
@click.argument("route", shell_complete=value_completion.routes)
@click.option("--to", "candidate", metavar="TARGET", help="Move the traffic to this target of the route.")
@click.option("--compare", metavar="TARGET", help="Compare this target at one share instead; nothing is promoted.")
@click.option("--from", "baseline", metavar="TARGET", help="Take the traffic from this target. Default: the target with the largest share.")
@click.option("--steps", callback=_read_percents, default="10,50,100", show_default=True, metavar="PERCENT,…", help="Shares of the target.")
@options.number("--share", lambda: api.configuration.RolloutTerms, "steps", default=50.0, help="Share in %, with --compare.")
@click.option("--every", callback=_seconds, default="30m", show_default=True, metavar="TIME", help="Minimum duration of a step.")
@options.whole_number(
    "--min-requests", lambda: api.configuration.RolloutTerms, "step_requests", default=500, help="Minimum requests per step."
)
@click.option("--guard", "guards", callback=_read_guards, multiple=True, metavar="NAME=VALUE", help="Margin of a guard. Can be repeated.")
@click.option("--until", callback=_read_until, metavar="TIME", help="End of a comparison: 2d or 2026-12-01T12:00Z.")
@print_format.output_options("Print the rollout as a JSON object.")
@click.pass_obj
def start(
    here: CliContext,
    /,
    *,
    route: str,
    candidate: str | None,
    compare: str | None,
    baseline: str | None,
    steps: tuple[float, ...],
    share: float,
    every: int,
    min_requests: int,
    guards: "dict[str, float | None]",
    until: datetime | None,
    as_json: bool,
) -> None:
    """Start a rollout of ROUTE, with --to, or a comparison, with --compare.

    Guards and their margins: errors=1% (failed answers), first_token=5% (late answers) and thumbs=10% (thumbs down), in percentage
    points, and cost=1.2 (upstream cost per token, as a factor). `off` disables a guard.
    """
    if (candidate is None) == (compare is None):
        raise click.UsageError("name a target with --to or --compare")
    request = api.configuration.StartRollout(
        route,
        candidate or compare or "",
        baseline,
        steps=(share,) if compare else steps,
        step_seconds=every,
        step_requests=min_requests,
        guards=api.configuration.RolloutGuards(**guards),
        only_compares=compare is not None,
        until=until,
    )
    started = here.call(api.configuration.start_rollout, request)
    plan = started.plan
    printing.show_message(
        started,
        f"{plan.candidate} gets {started.share:g} % of {plan.baseline}'s traffic. To watch it: aicli admin rollouts show {route}",
        as_json=as_json,
    )


@rollouts.command("list")
@click.option("--route", metavar="ROUTE", shell_complete=value_completion.routes, help="Only rollouts of this route.")
@click.option("--open", "only_open", is_flag=True, help="Only open rollouts.")
@options.whole_number("--limit", lambda: api.configuration.ListRollouts, "limit", default=20, help="Maximum number of rows.")
@watching.listing_options("Print a JSON list.")
@click.pass_obj
def list_all(here: CliContext, /, *, route: str | None, only_open: bool, limit: int, as_json: bool) -> None:
    """List rollouts and comparisons, newest first."""
    from shared.lists.rollouts import ROLLOUTS

    found = here.call(api.configuration.list_rollouts, api.configuration.ListRollouts(route, only_open, limit)).rollouts
    printing.show_list(found, ROLLOUTS, as_json=as_json)


@rollouts.command()
@click.argument("route", shell_complete=value_completion.routes)
@watching.listing_options("Print the rollout as a JSON object.")
@click.pass_obj
def show(here: CliContext, /, *, route: str, as_json: bool) -> None:
    """Show the newest rollout of ROUTE: its state, its two targets, and their outcomes."""
    from shared.lists import rollouts as lists

    found = here.call(api.configuration.get_rollout, api.configuration.GetRollout(route))
    if as_json:
        printing.show_json(printing.plain(found), rows=("conditions",))
        return
    rollout = found.rollout
    plan = rollout.plan
    why = f": {printing.printable(rollout.reason)}" if rollout.reason else ""
    click.echo(f"{plan.baseline} → {plan.candidate}: {lists.STATES[rollout.state][0]}{why}")
    if rollout.ended_at is None:
        least = "" if plan.only_compares else f", {rollout.step_requests} of {plan.step_requests} requests in this step"
        click.echo(f"{plan.candidate} has {rollout.share:g} %{least}")
    click.echo()
    printing.show_list(found.arms, lists.list_arms(found), as_json=False)
    click.echo()
    printing.show_list(found.conditions, lists.GUARDS, as_json=False)
    click.echo()
    printing.show_list(found.events, lists.STEPS, as_json=False)


def _action(name: str, summary: str, done: str) -> None:
    @rollouts.command(name, help=summary)
    @click.argument("route", shell_complete=value_completion.routes)
    @click.option("--note", default="", metavar="TEXT", help="Why, for the history.")
    @print_format.output_options("Print the rollout as a JSON object.")
    @click.pass_obj
    def change(here: CliContext, /, *, route: str, note: str, as_json: bool) -> None:
        from shared.api.configuration import RolloutAction

        changed = here.call(api.configuration.change_rollout, api.configuration.ChangeRollout(route, RolloutAction(name), note))
        printing.show_message(changed, f"{route}: {done.format(plan=changed.plan, share=changed.share)}", as_json=as_json)


_action("pause", "Keep the target's share as it is. The guards stay on.", "paused at {share:g} %")
_action("resume", "Continue a paused rollout. Its step starts again.", "running at {share:g} %")
_action("promote", "Move all traffic to the target now, and end the rollout.", "{plan.candidate} has taken over from {plan.baseline}")
_action("abort", "Return the traffic to the old target, and end the rollout or comparison.", "the traffic returned to {plan.baseline}")
