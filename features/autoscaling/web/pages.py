"""Show the pools of workers: how many there should be and are, what they cost, and what their hooks did."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from features.autoscaling import contract, instruments
from features.autoscaling.contract import PoolScaling, ScaleCallEntry
from features.autoscaling.lists import CALLS, POOLS
from services.web.charts import history_queries, history_view
from services.web.charts.history_charts import HistoryChartLine
from services.web.charts.history_queries import HistorySpan
from services.web.charts.history_view import ChartUnit, Grid
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import metrics
from shared.api.metrics import History, HistoryLine
from shared.lists.columns import Listing

WANTED, REPLICAS = instruments.WANTED_REPLICAS.name, instruments.POOL_REPLICAS.name
#: Label of the state -> word; the wanted ones have no state.
_STATES = {"": "Wanted", "ready": "Ready", "starting": "Starting"}
_SHOWN_CALLS = 50


@dataclass(frozen=True, slots=True)
class PoolChart:
    pool: str
    #: The current values, for the heading.
    now: str
    lines: tuple[HistoryChartLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPage:
    span: HistorySpan
    pools: tuple[PoolScaling, ...] = ()
    pool_list: ClassVar[Listing[PoolScaling]] = POOLS
    cost: str = ""
    #: In Unix seconds.
    since: str = ""
    step_seconds: int = 0
    charts: tuple[PoolChart, ...] = ()
    #: Why there are no charts.
    without_charts: str = ""
    calls: tuple[ScaleCallEntry, ...] = ()
    call_list: ClassVar[Listing[ScaleCallEntry]] = CALLS
    #: Of the file of pools.
    file_problem: str = ""


def describe(found: contract.Scaling, history: History | errors.AimeshError, span: HistorySpan) -> CapacityPage:
    why, since, step_seconds = "no data for this period yet", "", 0
    charts: tuple[PoolChart, ...] = ()
    if isinstance(history, errors.AimeshError):
        why = f"{history.message}; {history.hint}" if history.hint else history.message
    else:
        charts = tuple(chart for pool in found.pools if (chart := _chart(pool, history)).lines)
        since, step_seconds = str(int(history.since.timestamp())), history.step_seconds
    return CapacityPage(
        span=span, pools=found.pools, cost=f"{sum(pool.cost_per_hour for pool in found.pools):,.2f}", since=since,
        step_seconds=step_seconds, charts=charts, without_charts="" if charts else why, calls=found.calls,
        file_problem=found.problem,
    )  # fmt: skip


def _chart(pool: PoolScaling, history: History) -> PoolChart:
    of_pool = {line.labels.get("state", ""): line for line in history.lines if line.labels.get("pool") == pool.pool}
    steps = max((len(line.values) for line in history.lines), default=0)
    grid = Grid(history.since, timedelta(seconds=history.step_seconds), steps)
    now = f"{pool.ready} ready, {pool.wanted} wanted" if pool.fresh else ""
    return PoolChart(pool.pool, now, tuple(_line(word, of_pool[state], grid) for state, word in _STATES.items() if state in of_pool))


def _line(label: str, line: HistoryLine, grid: Grid) -> HistoryChartLine:
    values, unit = grid.fit(line.values), ChartUnit.COUNT
    latest, lowest, highest = (
        history_view.text(unit, read(values)) for read in (history_view.latest, history_view.lowest, history_view.highest)
    )
    return HistoryChartLine(label.lower(), label, history_view.written(unit, values), latest, lowest=lowest, highest=highest)


@get("/admin/capacity")
async def show_capacity(page_request: NamedDependency[PageRequest], span: FromQuery[str] = "") -> Page:
    chosen = history_queries.read_span(span)
    try:
        found, history = await asyncio.gather(_read_pools(page_request), _read_history(page_request, chosen))
    except errors.PeerError as error:
        return page_request.page("autoscaling/capacity.html", CapacityPage(span=chosen), problem=error)
    return page_request.page("autoscaling/capacity.html", describe(found, history, chosen))


async def _read_pools(page_request: PageRequest) -> contract.Scaling:
    """Return the pools without calls if only PostgreSQL is down."""
    try:
        return await page_request.call(contract.get_scaling, contract.GetScaling(calls=_SHOWN_CALLS))
    except errors.Unavailable:
        return await page_request.call(contract.get_scaling, contract.GetScaling())


async def _read_history(page_request: PageRequest, span: HistorySpan) -> History | errors.AimeshError:
    of_mesh = history_queries.make_request(history_queries.HistoryQuery.WHOLE, span, page_request.app.now())
    try:
        request = metrics.GetHistory((WANTED, REPLICAS), of_mesh.since, of_mesh.until, of_mesh.step_seconds)
        return await page_request.call(metrics.get_history, request)
    except errors.AimeshError as error:
        return error
