"""Show the routes and rollouts; of one route its targets, what they did, its versions and where requests would go."""

import asyncio
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar
from urllib.parse import quote

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web.charts import usage_chart
from services.web.http import forms
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import business
from shared.api import configuration as api
from shared.api.business import BusinessGrouping, BusinessSum
from shared.api.configuration import OPEN_STATES
from shared.config_documents import ConfigKind
from shared.lists.columns import Column, Listing, Shown
from shared.lists.rollouts import ROLLOUTS
from shared.lists.routes import ROUTES, TARGETS, list_tried, refused

_DONE = {"back": "Rolled back: the old content is a new version."}
#: What the targets' figures are of.
_DAYS = 7
#: The gateway returns the text of so many at once.
_VERSIONS = 10
_ROLLOUTS = 20
#: How many requests a test chooses targets for.
_TRIED = 1_000
_MINUTE = 60
#: What a tried request may have, beside its prompt.
FEATURES = {"": "only a prompt", "tools": "tools", "format": "a response format"}


class RollbackForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str


class StartForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    candidate: str = ""
    #: rollout or compare.
    mode: str = "rollout"
    #: Percentages with commas.
    steps: str = "10, 50, 100"
    minutes: str = "30"
    requests: str = "500"


@dataclass(frozen=True, slots=True, kw_only=True)
class TryForm:
    prompt_tokens: str = "100"
    #: A key of FEATURES.
    features: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteVersionView:
    version: api.ConfigVersion
    #: Lines that it has added and removed, as a unified diff.
    diff: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesPage:
    routes: tuple[api.RouteState, ...]
    listing: ClassVar[Listing[api.RouteState]] = ROUTES
    #: By route; open ones only.
    open: Mapping[str, api.RolloutSummary]
    rollouts: tuple[api.RolloutSummary, ...]
    rollout_listing: ClassVar[Listing[api.RolloutSummary]] = ROLLOUTS


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePage:
    route: api.RouteState
    #: With the use of the last days.
    targets: Listing[api.RouteTargetState]
    days: ClassVar[int] = _DAYS
    #: The open rollout.
    rollout: api.RolloutSummary | None
    versions: tuple[RouteVersionView, ...]
    trial: TryForm
    tried: api.TriedRoute | None
    tried_listing: ClassVar[Listing[api.TriedTarget]] = list_tried(_TRIED)
    #: What happens to requests without a target.
    refused: str
    form: StartForm
    features: ClassVar[Mapping[str, str]] = FEATURES
    address: str


@get("/admin/routes")
async def show_routes(page_request: NamedDependency[PageRequest]) -> Page:
    found, listed = await asyncio.gather(
        page_request.call(api.list_routes, api.ListRoutes()), page_request.call(api.list_rollouts, api.ListRollouts(limit=_ROLLOUTS))
    )
    view = RoutesPage(
        routes=found.routes,
        open={rollout.route: rollout for rollout in listed.rollouts if rollout.state in OPEN_STATES},
        rollouts=listed.rollouts,
    )
    return page_request.page("admin/routes.html", view)


@get("/admin/routes/{route:path}")
async def show_route(
    page_request: NamedDependency[PageRequest], route: FromPath[str], prompt_tokens: FromQuery[str] = "", features: FromQuery[str] = ""
) -> Page:
    """``prompt_tokens`` and ``features``: of the form that tries the route."""
    name = route.removeprefix("/")
    if not prompt_tokens:
        return await _page(page_request, name)
    trial = TryForm(prompt_tokens=prompt_tokens, features=features)
    try:
        return await _page(page_request, name, trial=trial, tried=await _try(page_request, name, trial))
    except errors.CallerError as error:
        return await _page(page_request, name, trial=trial, problem=error)


@post("/admin/routes")
async def roll_back(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(RollbackForm)
    try:
        version = _number(form.version, "version")
        await page_request.submit(api.rollback_config, api.RollbackConfig(ConfigKind.ROUTE, form.name, version))
    except errors.CallerError as error:
        return await _page(page_request, form.name, problem=error)
    return page_request.redirect(f"{address(form.name)}?done=back")


@post("/admin/rollouts")
async def start_rollout(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(StartForm)
    try:
        started = await page_request.submit(api.start_rollout, _plan(form))
    except errors.CallerError as error:
        return await _page(page_request, form.name, form=form, problem=error)
    return page_request.redirect(f"/admin/rollouts/{started.id}")


async def _page(
    page_request: PageRequest,
    name: str,
    *,
    trial: TryForm = TryForm(),
    tried: api.TriedRoute | None = None,
    form: StartForm | None = None,
    problem: errors.CallerError | None = None,
) -> Page:
    until = page_request.app.now().date() + timedelta(days=1)
    report = business.GetBusinessReport(until - timedelta(days=_DAYS), until, BusinessGrouping.TARGET)
    found, versions, listed, used = await asyncio.gather(
        page_request.call(api.list_routes, api.ListRoutes()),
        page_request.call(api.list_config_versions, api.ListConfigVersions(ConfigKind.ROUTE, name, bodies=True, limit=_VERSIONS)),
        page_request.call(api.list_rollouts, api.ListRollouts(name, only_open=True, limit=1)),
        page_request.fetch(business.get_business_report, report),
    )
    route = next((route for route in found.routes if route.name == name), None)
    if route is None:
        raise errors.NotFound("there is no such route", hint="choose one from the list")
    sums = {} if used is None else {row.name or "": row.sum for row in used.rows}
    view = RoutePage(
        route=route,
        targets=_targets(route, sums),
        rollout=next(iter(listed.rollouts), None),
        versions=tuple(_versions(versions.versions)),
        trial=trial,
        tried=tried,
        refused="" if tried is None else refused(tried, _TRIED),
        form=form or StartForm(),
        address=address(name),
    )
    return page_request.page("admin/route.html", view, problem=problem, notices=_DONE)


def address(name: str) -> str:
    """Names may have slashes."""
    return f"/admin/routes/{quote(name)}"


def _targets(route: api.RouteState, sums: Mapping[str, BusinessSum]) -> Listing[api.RouteTargetState]:
    used = {target.name: sums.get(f"{route.name}/{target.name}", BusinessSum()) for target in route.targets}
    total = sum(one.requests for one in used.values())

    def column(title: str, show: Callable[[BusinessSum], Shown]) -> Column[api.RouteTargetState]:
        return Column(title=title, show=lambda target: show(used[target.name]), is_number=True)

    columns = (
        column(f"Share in {_DAYS} days", lambda one: f"{100 * one.requests / total:.1f} %" if total else None),
        column("Requests", lambda one: one.requests),
        column("Failed", lambda one: one.failed + one.timed_out),
        column("Latency", lambda one: f"{one.response_ms / one.succeeded / 1000:.1f} s" if one.succeeded else None),
        column(f"Upstream in {_DAYS} days", lambda one: usage_chart.cost(one.upstream_micro) if one.upstream_micro else None),
    )
    return Listing(columns=(*TARGETS.columns, *columns), empty=TARGETS.empty)


def _versions(versions: Sequence[api.ConfigVersion]) -> Iterator[RouteVersionView]:
    """Yield versions, newest first; the oldest one is compared with nothing that is shown."""
    for version, before in zip(versions, (*versions[1:], None), strict=True):
        old, new = ((one.body or "") if one is not None else "" for one in (before, version))
        lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2))[2:]
        yield RouteVersionView(version=version, diff=tuple(line for line in lines if not line.startswith("@@")))


async def _try(page_request: PageRequest, name: str, trial: TryForm) -> api.TriedRoute:
    tokens = _number(trial.prompt_tokens, "prompt_tokens")
    tools, form = trial.features == "tools", trial.features == "format"
    return await page_request.call(api.try_route, api.TryRoute(name, _TRIED, tokens, tools=tools, response_format=form))


def _plan(form: StartForm) -> api.StartRollout:
    """Raises BadRequest."""
    only_compares = form.mode == "compare"
    try:
        steps = tuple(float(step) for step in form.steps.replace("%", "").split(","))
    except ValueError as error:
        raise errors.BadRequest("the steps must be percentages", hint="write 10, 50, 100", field="steps") from error
    plan = api.StartRollout(
        form.name,
        form.candidate,
        steps=steps[:1] if only_compares else steps,
        step_seconds=_MINUTE * _number(form.minutes, "minutes"),
        step_requests=_number(form.requests, "requests"),
        only_compares=only_compares,
    )
    try:
        # The type's bounds are checked only where it is decoded.
        return msgspec.convert(msgspec.to_builtins(plan), api.StartRollout)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(
            "this plan is not possible", hint="steps are between 0 and 100, and take between a minute and 30 days"
        ) from error


def _number(text: str, field: str) -> int:
    if (number := forms.find_number(text)) is None:
        raise errors.BadRequest(f"{text[:20]!r} is no whole number", hint="write digits only", field=field)
    return number
