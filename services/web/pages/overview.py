"""Show the overview, live: usage, quota, recent requests and first steps."""

import asyncio
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import ClassVar

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import agent_setups, live_updates
from services.web.agent_setups import AgentsView
from services.web.charts import usage_chart
from services.web.charts.usage_chart import BucketLine, SumLine, UsageChart, UsageMeasure, UsageSpan
from services.web.http.event_response import EventResponse
from services.web.pages import model_view, quota_view, request_view, setup
from services.web.pages.quota_view import CreditsView, LimitView, NoticeView
from services.web.pages.request_view import RequestView
from services.web.pages.setup_view import Checklist
from services.web.request_context import PAGE_CALL_SECONDS, Page, PageRequest
from shared import plan_names
from shared.api import gateway, usage_report
from shared.api.gateway import UserQuota
from shared.api.usage_report import LoggedRequests, UsageSummary
from shared.types import Credential, ModelName, PlanName, RequestId

RECENT = 10
#: A report is expensive: it sorts all requests of its period by latency. With new requests, the pause is long enough that the reports of
#: one page keep the gateway busy for at most a twentieth of the time. Without new requests, LATEST_SECONDS applies.
SOONEST_SECONDS, LATEST_SECONDS = 1.0, 60.0
_PAUSE = 20


@dataclass(frozen=True, slots=True)
class FirstSteps:
    """The data for a new account's first page."""

    #: The full first key; None if creating it failed.
    key: Credential | None
    #: The page that they requested; empty for none.
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewPage:
    tier: PlanName
    span: UsageSpan
    #: None if the gateway did not respond; the same below.
    chart: UsageChart | None
    sums: SumLine
    limits: tuple[LimitView, ...] | None
    credits: CreditsView
    notices: tuple[NoticeView, ...]
    recent: tuple[RequestView, ...] | None
    #: Templates for rows added later.
    blank_bucket: ClassVar[BucketLine] = BucketLine()
    blank_limit: ClassVar[LimitView] = LimitView()
    blank_request: ClassVar[RequestView] = RequestView()
    #: Set only in the response to the registration.
    newcomer: FirstSteps | None
    #: None if no model is served.
    model: ModelName | None
    agents: AgentsView
    #: The administrators' checklist; None for others, and once it is done or dismissed.
    setup: Checklist | None

    @property
    def is_unavailable(self) -> bool:
        """Return whether nothing is available, so that the page shows one message."""
        return self.chart is None and self.limits is None and self.recent is None

    @property
    def is_new(self) -> bool:
        """Return whether the user has sent no request yet."""
        return self.recent == ()


@get("/dashboard")
async def dashboard(page_request: NamedDependency[PageRequest], span: FromQuery[str] = "", show: FromQuery[str] = "") -> Page:
    return await show_overview(page_request, usage_chart.read_span(span), usage_chart.read_measure(show))


async def welcome(page_request: PageRequest, *, new_key: Credential | None, then: str) -> Page:
    """Return the first page of a new account."""
    return await show_overview(page_request, UsageSpan.MONTH, UsageMeasure.REQUESTS, FirstSteps(new_key, then))


async def show_overview(page_request: PageRequest, span: UsageSpan, measure: UsageMeasure, newcomer: FirstSteps | None = None) -> Page:
    """Return the overview with the parts that are available."""
    wanted = usage_chart.of_span(span, page_request.app.now())
    report, quota, recent, models, checklist = await asyncio.gather(
        page_request.fetch(usage_report.get_usage_report, wanted),
        page_request.fetch(gateway.get_user_quota, gateway.GetUserQuota()),
        page_request.fetch(usage_report.list_requests, usage_report.ListRequests(limit=RECENT)),
        page_request.fetch(gateway.list_models, gateway.ListModels()),
        setup.find_checklist(page_request),
    )
    view = OverviewPage(
        tier=plan_names.name_of(quota.tier if quota else page_request.person.user.tier),
        span=span,
        chart=usage_chart.draw(report, measure, wanted.bucket) if report else None,
        sums=usage_chart.summed(report.total) if report else SumLine(),
        limits=quota_view.limits(quota) if quota else None,
        credits=quota_view.credits(quota.account if quota else None),
        notices=quota_view.notices(quota, sells=page_request.sells),
        recent=_newest(recent) if recent else None,
        newcomer=newcomer,
        model=model_view.default_model(models),
        agents=agent_setups.view(page_request.app.agent_setups, page_request.address, models, pin=page_request.app.settings.public_key_pin),
        setup=checklist,
    )
    return page_request.page("dashboard.html", view, here="dashboard")


@dataclass(frozen=True, slots=True)
class LastReport:
    """The report that the page shows."""

    at: datetime
    #: How long the gateway took.
    took_seconds: float
    #: The newest request in the log at that time; None if the log was empty.
    newest: RequestId | None


def is_due(last: LastReport | None, newest: RequestId | None, now: datetime) -> bool:
    """Return whether to fetch a new report now."""
    if last is None:
        return True
    age = (now - last.at).total_seconds()
    if newest == last.newest:
        return age >= LATEST_SECONDS
    return age >= min(LATEST_SECONDS, max(SOONEST_SECONDS, _PAUSE * last.took_seconds))


class OverviewUpdates:
    """The values of one open overview."""

    def __init__(self, page_request: PageRequest, span: UsageSpan) -> None:
        self._page_request = page_request
        self._span = span
        self._last: LastReport | None = None
        self._report: live_updates.Values = {}

    async def read(self) -> live_updates.Values:
        """Read the current values. Raises PeerError while the gateway is down."""
        page_request = self._page_request
        quota, recent = await asyncio.gather(
            page_request.call(gateway.get_user_quota, gateway.GetUserQuota(), deadline_seconds=PAGE_CALL_SECONDS),
            page_request.call(usage_report.list_requests, usage_report.ListRequests(limit=RECENT), deadline_seconds=PAGE_CALL_SECONDS),
        )
        now = page_request.app.now()
        newest = recent.requests[0].id if recent.requests else None
        if is_due(self._last, newest, now):
            wanted = usage_chart.of_span(self._span, now)
            report = await page_request.call(usage_report.get_usage_report, wanted, deadline_seconds=PAGE_CALL_SECONDS)
            self._report = _report_values(report, wanted)
            self._last = LastReport(now, (page_request.app.now() - now).total_seconds(), newest)
        notices = [asdict(line) for line in quota_view.notices(quota, sells=page_request.sells)]
        return self._report | _quota_values(quota) | {"notices": notices} | _recent_values(recent)


@get("/live/overview")
async def follow_overview(page_request: NamedDependency[PageRequest], span: FromQuery[str] = "") -> EventResponse:
    return page_request.follow(OverviewUpdates(page_request, usage_chart.read_span(span)).read)


def _report_values(report: UsageSummary, wanted: usage_report.GetUsageReport) -> live_updates.Values:
    return asdict(usage_chart.summed(report.total)) | {
        "is_unused": report.total.requests == 0,
        "buckets": [asdict(line) for line in usage_chart.lines(report.buckets, wanted.bucket)],
    }


def _quota_values(quota: UserQuota) -> live_updates.Values:
    line = quota_view.credits(quota.account)
    limits = quota_view.limits(quota)
    return {"limits": [asdict(each) for each in limits], "no_limits": not limits, "credits": line.left, "credits_detail": line.detail} | {
        "plan_tokens": line.tokens,
        "plan_tokens_detail": line.tokens_detail,
    }


def _recent_values(recent: LoggedRequests) -> live_updates.Values:
    newest = _newest(recent)
    return {"recent": [asdict(line) for line in newest], "no_recent": not newest}


def _newest(recent: LoggedRequests) -> tuple[RequestView, ...]:
    # A page of the log is longer than its limit if its last requests have the same time.
    return request_view.lines(recent.requests[:RECENT])
