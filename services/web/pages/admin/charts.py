"""Show charts of the mesh and of each node; the last hour is live.

Reading the history can take seconds in a large mesh, so the server sends the page in two pieces: first everything above the charts.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from litestar import MediaType, get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Stream

from services.web import live_updates
from services.web.charts import history_answers, history_charts, history_queries
from services.web.charts.history_charts import HistoryCharts
from services.web.charts.history_queries import HistoryQuery, HistorySpan
from services.web.http.event_response import EventResponse
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import membership, metrics
from shared.api.membership import Member, MemberState
from shared.api.metrics import History
from shared.lists import nodes as lists

#: The metrics service collects every 15 s. If reading takes long, the queries of one page keep it busy for at most a tenth of the time.
SOONEST_SECONDS, LATEST_SECONDS = 15.0, 300.0
_PAUSE = 10
#: The deadline for all queries of a page; a day of many machines takes longer than any other page.
WHOLE_SECONDS = 15.0
#: The metrics service has four database connections, which others use too.
_AT_ONCE = 3
#: The server sends everything before this mark first.
MARK = b"<!-- numbers -->"
#: Without it, proxies such as nginx wait for the second piece.
_HEADERS = {"X-Accel-Buffering": "no"}
_NODE = re.compile(r"[A-Z2-7]{12,56}")

Found = Mapping[HistoryQuery, History | errors.AimeshError]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartsPage:
    span: HistorySpan
    #: The id of the node; empty for the whole mesh.
    node: str
    #: Its name and shortened id.
    node_name: str
    node_short: str
    charts: HistoryCharts
    #: Why there are no charts; None if there are.
    problem: errors.AimeshError | None

    @property
    def is_kept(self) -> bool:
        """Return whether this mesh records a history."""
        return not isinstance(self.problem, errors.NotFound)


@get("/admin/charts")
async def show_charts(page_request: NamedDependency[PageRequest], span: FromQuery[str] = "", node: FromQuery[str] = "") -> Stream:
    _check_node(node)
    chosen_span = history_queries.read_span(span)
    members = await _members(page_request)
    member = next((each for each in members if each.id.startswith(node)), None) if node else None
    shell = ChartsPage(
        span=chosen_span,
        node=node,
        node_name=member.name or member.role.value if member is not None else "",
        node_short=lists.short(node),
        charts=HistoryCharts(),
        problem=None,
    )
    page = _page(page_request, shell)
    pieces = _pieces(page_request, shell, page, members)
    return Stream(pieces, media_type=MediaType.HTML, status_code=page.status_code, cookies=page.cookies, headers=_HEADERS)


async def _pieces(page_request: PageRequest, shell: ChartsPage, page: Page, members: tuple[Member, ...]) -> AsyncIterator[bytes]:
    """Yield the page up to the mark, then the rest once the charts are ready."""
    yield page.content.partition(MARK)[0]
    try:
        whole = replace(shell, charts=await _draw(page_request, shell.span, shell.node, members))
    except errors.AimeshError as error:
        whole = replace(shell, problem=error)
    yield _page(page_request, whole).content.partition(MARK)[2]


def _page(page_request: PageRequest, view: ChartsPage) -> Page:
    return page_request.page("admin/charts.html", view)


@get("/live/charts")
async def follow_charts(page_request: NamedDependency[PageRequest], node: FromQuery[str] = "") -> EventResponse:
    """Stream the last hour. Longer periods change too slowly to be live."""
    _check_node(node)
    return page_request.follow(ChartUpdates(page_request, node).read)


class ChartUpdates:
    """The values of one open page. The page already has its first values."""

    def __init__(self, page_request: PageRequest, node: str) -> None:
        self._page_request = page_request
        self._node = node
        self._read_at: datetime = page_request.app.now()
        self._pause_seconds = SOONEST_SECONDS
        self._shown: live_updates.Values = {}

    async def read(self) -> live_updates.Values:
        now = self._page_request.app.now()
        if abs((now - self._read_at).total_seconds()) >= self._pause_seconds:
            self._read_at = now
            self._shown = self._shown | await self._read_charts()
            took = (self._page_request.app.now() - now).total_seconds()
            self._pause_seconds = min(LATEST_SECONDS, max(SOONEST_SECONDS, _PAUSE * took))
        return self._shown

    async def _read_charts(self) -> live_updates.Values:
        try:
            charts = await _draw(self._page_request, HistorySpan.HOUR, self._node, await _members(self._page_request))
        except errors.AimeshError:
            return {"connection": "stale"}
        return {**history_charts.values(charts), "connection": ""}


async def _draw(page_request: PageRequest, span: HistorySpan, node: str, members: tuple[Member, ...]) -> HistoryCharts:
    """Raises the error of the metrics service if there are no charts."""
    found = await _read(page_request, span, node, members)
    names = {member.id[: history_answers.NODE_LETTERS]: member.name for member in members if member.name}
    return history_charts.draw(found, span, names, node[: history_answers.NODE_LETTERS])


async def _read(page_request: PageRequest, span: HistorySpan, node: str, members: tuple[Member, ...]) -> Found:
    machines = sum(member.state is MemberState.ACTIVE for member in members)
    of_one = bool(node)
    waiting = history_queries.plan(machines, of_one=of_one)
    found: dict[HistoryQuery, History | errors.AimeshError] = {}
    now, ends_at = page_request.app.now(), asyncio.get_running_loop().time() + WHOLE_SECONDS
    call_limit = asyncio.Semaphore(_AT_ONCE)

    async def fetch(question: HistoryQuery) -> History | errors.AimeshError:
        """Return the history or the error. The page is half sent, so this must not raise."""
        async with call_limit:
            left = ends_at - asyncio.get_running_loop().time()
            if left <= 0:
                return errors.DeadlineExceeded("reading the history took too long", hint="choose a shorter period")
            try:
                wanted = history_queries.make_request(question, span, now, node)
                return await page_request.call(metrics.get_history, wanted, deadline_seconds=left)
            except errors.AimeshError as error:
                return error

    while waiting:
        answers = await asyncio.gather(*map(fetch, waiting))
        found |= dict(zip(waiting, answers, strict=True))
        refused = [question for question in waiting if isinstance(found[question], errors.BadRequest)]
        instead = dict.fromkeys(other for question in refused for other in history_queries.instead(question, of_one=of_one))
        waiting = tuple(question for question in instead if question not in found)
    return found


async def _members(page_request: PageRequest) -> tuple[Member, ...]:
    """Return the members; empty while auth is down. The charts work without names."""
    answer = await page_request.fetch(membership.list_members, membership.ListMembers())
    return answer.members if answer is not None else ()


def _check_node(node: str) -> None:
    if node and not _NODE.fullmatch(node):
        raise errors.NotFound("there is no such node", hint="choose one from the list of nodes")
