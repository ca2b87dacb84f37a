"""Show a rollout: its steps, its two targets, and the verdicts, with charts and a CSV export; pause, promote and abort it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from itertools import pairwise
from typing import ClassVar
from uuid import UUID

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web import csv_tables
from services.web.charts.usage_chart import NOTHING
from services.web.http import downloads
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import configuration as api
from shared.api.configuration import OPEN_STATES, RolloutAction, RolloutState
from shared.lists.columns import Listing, Tone
from shared.lists.rollouts import GUARDS, STATES, STEPS, list_arms

_DONE = {action.value: text for action, text in {
    RolloutAction.PAUSE: "Rollout paused. The candidate keeps its share.",
    RolloutAction.RESUME: "Rollout resumed.",
    RolloutAction.PROMOTE: "The candidate now gets all the traffic.",
    RolloutAction.ABORT: "The traffic returned to the baseline.",
}.items()}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RolloutChartRow:
    #: In Unix seconds.
    seconds: int
    label: str
    #: Text and value of each column; an empty value means unknown.
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutChart:
    id: str
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[RolloutChartRow, ...]
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPage:
    rollout: api.RolloutSummary
    is_open: bool
    steps: str
    found: api.RolloutDetails
    arms: Listing[api.RolloutArm]
    guards: ClassVar[Listing[api.RolloutCondition]] = GUARDS
    events: ClassVar[Listing[api.RolloutEvent]] = STEPS
    charts: tuple[RolloutChart, ...]
    states: ClassVar[Mapping[RolloutState, tuple[str, Tone]]] = STATES
    path: str


@get("/admin/rollouts/{rollout:uuid}")
async def show_rollout(page_request: NamedDependency[PageRequest], rollout: FromPath[UUID]) -> Page:
    return await _page(page_request, rollout)


@post("/admin/rollouts/{rollout:uuid}/{action:str}")
async def change_rollout(page_request: NamedDependency[PageRequest], rollout: FromPath[UUID], action: FromPath[str]) -> Page:
    if action not in set(RolloutAction):
        raise errors.NotFound("there is no such action", hint="go back to the rollout")
    note = await page_request.read_field("note", "")
    try:
        found = await page_request.call(api.get_rollout, api.GetRollout(id=rollout))
        if found.rollout.state not in OPEN_STATES:
            raise errors.BadRequest("the rollout has ended", hint="start a new one from its route")
        route = found.rollout.route
        await page_request.submit(api.change_rollout, api.ChangeRollout(route, RolloutAction(action), note[: api.MAX_NOTE_CHARACTERS]))
    except errors.CallerError as error:
        return await _page(page_request, rollout, error)
    return page_request.redirect(f"/admin/rollouts/{rollout}?done={action}")


@get("/admin/rollouts/{rollout:uuid}/points.csv")
async def download_rollout(page_request: NamedDependency[PageRequest], rollout: FromPath[UUID]) -> Response[bytes]:
    found = await page_request.call(api.get_rollout, api.GetRollout(id=rollout, points=True))
    headers = downloads.attachment(f"aimesh-rollout-{rollout}.csv")
    return Response(csv_tables.rollout(found.points), media_type=csv_tables.MEDIA_TYPE, headers=headers)


async def _page(page_request: PageRequest, rollout: UUID, problem: errors.CallerError | None = None) -> Page:
    found = await page_request.call(api.get_rollout, api.GetRollout(id=rollout, points=True))
    summary = found.rollout
    view = RolloutPage(
        rollout=summary,
        is_open=summary.state in OPEN_STATES,
        steps=describe_steps(summary),
        found=found,
        arms=list_arms(found),
        charts=charts(found),
        path=f"/admin/rollouts/{rollout}",
    )
    return page_request.page("admin/rollout.html", view, problem=problem, notices=_DONE)


def describe_steps(rollout: api.RolloutSummary) -> str:
    plan = rollout.plan
    if plan.only_compares:
        until = "" if plan.until is None else f", until {plan.until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return f"A comparison at {plan.steps[0]:g} %{until}"
    steps = " → ".join(f"{step:g} %" for step in plan.steps)
    return f"{steps}; each step takes {_minutes(plan.step_seconds)} and {plan.step_requests:,} requests at least"


def _minutes(seconds: int) -> str:
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit} {name}{'' if seconds == unit else 's'}"
    return f"{seconds} seconds"


def charts(found: api.RolloutDetails) -> tuple[RolloutChart, ...]:
    """Return the charts of a rollout that has a course."""
    points, plan = found.points, found.rollout.plan
    if len(points) < 2:
        return ()
    names = plan.candidate, plan.baseline
    drawn = (
        RolloutChart(
            id="failed",
            title="Failed answers",
            unit=" %",
            columns=names,
            rows=tuple(_failed(points)),
            hint="Per period. Gaps are periods without answers.",
        ),
        _difference(found, "errors", "Difference in failed answers"),
        RolloutChart(
            id="first",
            title="p95 time to first token",
            unit=" ms",
            columns=names,
            rows=_rows(points, lambda point: [arm.first_token_p95_ms for arm in point.arms], "{:,.0f} ms"),
            hint="Over all answers so far.",
        ),
        _difference(found, "first_token", "Difference in late first tokens"),
    )
    return tuple(chart for chart in drawn if any(value for row in chart.rows for _, value in row.cells))


def _failed(points: Sequence[api.RolloutPoint]) -> Iterator[RolloutChartRow]:
    for before, point in pairwise(points):
        then, now = (next((each for each in one.intervals if each.name == "errors"), None) for one in (before, point))
        if then is not None and now is not None:
            shares = [
                _percent(now.candidate_bad - then.candidate_bad, now.candidate_outcomes - then.candidate_outcomes),
                _percent(now.baseline_bad - then.baseline_bad, now.baseline_outcomes - then.baseline_outcomes),
            ]
            yield _row(point, shares, "{:.1f} %")


def _percent(bad: int, outcomes: int) -> float | None:
    return 100 * bad / outcomes if outcomes > 0 else None


def _difference(found: api.RolloutDetails, guard: str, title: str) -> RolloutChart:
    def bounds(point: api.RolloutPoint) -> list[float | None]:
        state = next((each for each in point.intervals if each.name == guard), None)
        if state is None or state.half_width is None:
            return [None, None, None]
        return [100 * each for each in (state.difference, state.difference - state.half_width, state.difference + state.half_width)]

    return RolloutChart(
        id=f"difference-{guard}",
        title=title,
        unit="",
        columns=("Observed", "Lowest", "Highest"),
        rows=_rows(found.points, bounds, "{:+.1f}"),
        hint=f"In percentage points; above 0, {found.rollout.plan.candidate} is worse. The true difference lies between lowest and highest "
        "with 95 % certainty, whenever you look.",
    )


def _rows(
    points: Sequence[api.RolloutPoint], find: Callable[[api.RolloutPoint], Sequence[float | None]], form: str
) -> tuple[RolloutChartRow, ...]:
    return tuple(_row(point, find(point), form) for point in points)


def _row(point: api.RolloutPoint, values: Sequence[float | None], form: str) -> RolloutChartRow:
    cells = ((NOTHING, "") if value is None else (form.format(value), f"{value:.4g}") for value in values)
    return RolloutChartRow(int(point.at.timestamp()), f"{point.at.astimezone(UTC):%Y-%m-%d %H:%M}", tuple(cells))
