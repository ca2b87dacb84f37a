"""How the mesh went: charts of its history, of the whole and of each machine; the last hour follows while the page is open.

Reading a history takes seconds where there are many machines: a page is sent in two pieces, and what is known without it comes at once.
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

from services.web import history_answers, history_charts, history_questions, live
from services.web.events import Events
from services.web.history_charts import Charts
from services.web.history_questions import Question, Span
from services.web.pages.admin import node_lines
from services.web.visits import Page, Visit
from shared import errors
from shared.api import history, membership
from shared.api.history import History
from shared.api.membership import Member, MemberState

#: The metrics service looks at the mesh as often. Where an answer is much work, the questions of one page keep it busy for a tenth of the
#: time at most.
SOONEST_SECONDS, LATEST_SECONDS = 15.0, 300.0
_PAUSE = 10
#: Until then there are numbers, or none: a day of many machines is more work than all other pages are.
WHOLE_SECONDS = 15.0
#: The metrics service reads with four connections at once, and is asked by others too.
_AT_ONCE = 3
#: What stands before it in the page is sent while the metrics service is asked.
MARK = b"<!-- numbers -->"
#: Or a proxy such as nginx would wait for the second piece.
_HEADERS = {"X-Accel-Buffering": "no"}
_NODE = re.compile(r"[A-Z2-7]{12,56}")

Found = Mapping[Question, History | errors.AimeshError]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartsPage:
    span: Span
    #: The machine that this is about; empty for the whole mesh.
    node: str
    #: What people call it, and what is shown of its id.
    node_name: str
    node_short: str
    charts: Charts
    #: Why there are no charts; None where there are.
    problem: errors.AimeshError | None

    @property
    def is_kept(self) -> bool:
        """False where this mesh keeps no history at all."""
        return not isinstance(self.problem, errors.NotFound)


@get("/admin/charts")
async def show_charts(visit: NamedDependency[Visit], span: FromQuery[str] = "", node: FromQuery[str] = "") -> Stream:
    _check_node(node)
    asked = history_questions.read_span(span)
    members = await _members(visit)
    member = next((each for each in members if each.id.startswith(node)), None) if node else None
    shell = ChartsPage(
        span=asked,
        node=node,
        node_name=member.name or member.role.value if member is not None else "",
        node_short=node[: node_lines.SHOWN_OF_ID],
        charts=Charts(),
        problem=None,
    )
    page = _page(visit, shell)
    pieces = _pieces(visit, shell, page, members)
    return Stream(pieces, media_type=MediaType.HTML, status_code=page.status_code, cookies=page.cookies, headers=_HEADERS)


async def _pieces(visit: Visit, shell: ChartsPage, page: Page, members: tuple[Member, ...]) -> AsyncIterator[bytes]:
    """The page up to the numbers at once; then what the metrics service said."""
    yield page.content.partition(MARK)[0]
    found = await _read(visit, shell.span, shell.node, members)
    try:
        charts = history_charts.draw(found, shell.span, _names(members), shell.node[: history_answers.NODE_LETTERS])
        whole = replace(shell, charts=charts)
    except errors.AimeshError as error:
        whole = replace(shell, problem=error)
    yield _page(visit, whole).content.partition(MARK)[2]


def _page(visit: Visit, view: ChartsPage) -> Page:
    return visit.page("admin/charts.html", view, here="admin")


@get("/live/charts")
async def follow_charts(visit: NamedDependency[Visit], node: FromQuery[str] = "") -> Events:
    """The last hour again and again; longer times change too slowly to be worth it."""
    _check_node(node)
    following = Following(visit, node)
    return live.answer(visit.site.followers, str(visit.person.user.id), following.read)


class Following:
    """What one open page shows. The page came with its numbers, so that it is first asked when there may be others."""

    def __init__(self, visit: Visit, node: str) -> None:
        self._visit = visit
        self._node = node
        self._asked_at: datetime = visit.site.now()
        self._pause_seconds = SOONEST_SECONDS
        self._shown: live.Values = {"connection": ""}

    async def read(self) -> live.Values:
        now = self._visit.site.now()
        if abs((now - self._asked_at).total_seconds()) >= self._pause_seconds:
            self._asked_at = now
            self._shown |= await self._ask()
            took = (self._visit.site.now() - now).total_seconds()
            self._pause_seconds = min(LATEST_SECONDS, max(SOONEST_SECONDS, _PAUSE * took))
        return self._visit.banner_values() | self._shown

    async def _ask(self) -> live.Values:
        members = await _members(self._visit)
        found = await _read(self._visit, Span.HOUR, self._node, members)
        try:
            charts = history_charts.draw(found, Span.HOUR, _names(members), self._node[: history_answers.NODE_LETTERS])
        except errors.AimeshError:
            return {"connection": "stale"}
        return {**history_charts.values(charts), "connection": ""}


async def _read(visit: Visit, span: Span, node: str, members: tuple[Member, ...]) -> Found:
    """Each question is asked once at most: what would be too long an answer is asked in another way."""
    machines = sum(member.state is MemberState.ACTIVE for member in members)
    of_one = bool(node)
    waiting = history_questions.plan(machines, of_one=of_one)
    found: dict[Question, History | errors.AimeshError] = {}
    asking = _Asking(visit, span, node)
    while waiting:
        answers = await asyncio.gather(*(asking.ask(question) for question in waiting))
        found |= dict(zip(waiting, answers, strict=True))
        refused = [question for question in waiting if isinstance(found[question], errors.BadRequest)]
        instead = dict.fromkeys(other for question in refused for other in history_questions.instead(question, of_one=of_one))
        waiting = tuple(question for question in instead if question not in found)
    return found


class _Asking:
    """Some questions at once, and none after the time that all have together."""

    def __init__(self, visit: Visit, span: Span, node: str) -> None:
        self._visit = visit
        self._span = span
        self._node = node
        self._now = visit.site.now()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._ends_at = asyncio.get_running_loop().time() + WHOLE_SECONDS

    async def ask(self, question: Question) -> History | errors.AimeshError:
        """Never raises what the metrics service says: the page is half sent by then."""
        wanted = history_questions.ask(question, self._span, self._now, self._node)
        async with self._room:
            left = self._ends_at - asyncio.get_running_loop().time()
            if left <= 0:
                return errors.DeadlineExceeded("reading the history took too long", hint="look at a shorter time")
            try:
                return await self._visit.call(history.get_history, wanted, deadline_seconds=left)
            except errors.AimeshError as error:
                return error


async def _members(visit: Visit) -> tuple[Member, ...]:
    """None where auth is away: the charts do without names then."""
    answer = await visit.ask(membership.list_members, membership.ListMembers())
    return answer.members if answer is not None else ()


def _names(members: tuple[Member, ...]) -> Mapping[str, str]:
    return {member.id[: history_answers.NODE_LETTERS]: member.name for member in members if member.name}


def _check_node(node: str) -> None:
    """Raises NotFound."""
    if node and not _NODE.fullmatch(node):
        raise errors.NotFound("there is no such machine", hint="open the list of nodes and choose one there")


ROUTES = (show_charts, follow_charts)
