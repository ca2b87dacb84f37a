"""Show the overview: usage, quota, recent requests and first steps."""

import asyncio
from dataclasses import asdict, dataclass, field

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import live_updates
from services.web.charts import usage_chart
from services.web.charts.usage_chart import BucketLine, SumLine, UsageChart, UsageMeasure, UsageSpan
from services.web.pages import quota_view, request_view
from services.web.pages.quota_view import CreditsView, LimitView
from services.web.pages.request_view import RequestView
from services.web.request_context import Page, PageRequest
from shared.api import gateway, usage_report
from shared.api.gateway import UserQuota
from shared.api.usage_report import LoggedRequests, UsageSummary
from shared.types import Credential, ModelName, Tier

#: The number of recent requests.
RECENT = 10


@dataclass(frozen=True, slots=True)
class FirstSteps:
    """The data for a new account's first page."""

    #: The full first key; None if creating it failed.
    key: Credential | None
    #: The page that they requested; empty for none.
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewPage:
    username: str
    tier: Tier
    span: UsageSpan
    #: None if the gateway did not respond; the same below.
    chart: UsageChart | None
    sums: SumLine
    limits: tuple[LimitView, ...] | None
    credits: CreditsView
    recent: tuple[RequestView, ...] | None
    #: Templates for rows added later.
    blank_bucket: BucketLine = field(default_factory=BucketLine)
    blank_limit: LimitView = field(default_factory=LimitView)
    blank_request: RequestView = field(default_factory=RequestView)
    #: Set only in the response to the registration.
    newcomer: FirstSteps | None
    address: str
    #: None if no model is served.
    model: ModelName | None

    @property
    def is_away(self) -> bool:
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
    wanted = usage_chart.of_span(span, page_request.site.now())
    report, quota, recent, models = await asyncio.gather(
        page_request.ask(usage_report.get_usage_report, wanted),
        page_request.ask(gateway.get_user_quota, gateway.GetUserQuota()),
        page_request.ask(usage_report.list_requests, usage_report.ListRequests(limit=RECENT)),
        page_request.ask(gateway.list_models, gateway.ListModels()),
    )
    view = OverviewPage(
        username=page_request.person.user.username,
        tier=quota.tier if quota else page_request.person.user.tier,
        span=span,
        chart=usage_chart.draw(report, measure, wanted.bucket) if report else None,
        sums=usage_chart.summed(report.total) if report else SumLine(),
        limits=quota_view.limits(quota) if quota else None,
        credits=quota_view.credits(quota.account if quota else None),
        recent=_newest(recent) if recent else None,
        newcomer=newcomer,
        address=page_request.address,
        model=next((model.name for model in models.models if not model.only_embeds), None) if models else None,
    )
    return page_request.page("dashboard.html", view, here="dashboard")


def report_values(report: UsageSummary, wanted: usage_report.GetUsageReport) -> live_updates.Values:
    """Return the live values of the figures and the chart."""
    return asdict(usage_chart.summed(report.total)) | {
        "is_unused": report.total.requests == 0,
        "buckets": [usage_chart.plain(line) for line in usage_chart.lines(report.buckets, wanted.bucket)],
    }


def quota_values(quota: UserQuota) -> live_updates.Values:
    line = quota_view.credits(quota.account)
    limits = quota_view.limits(quota)
    return {
        "limits": [quota_view.plain(each) for each in limits],
        "no_limits": not limits,
        "credits": line.left,
        "credits_detail": line.detail,
    }


def recent_values(recent: LoggedRequests) -> live_updates.Values:
    newest = _newest(recent)
    return {"recent": [request_view.plain(line) for line in newest], "no_recent": not newest}


def _newest(recent: LoggedRequests) -> tuple[RequestView, ...]:
    # A page of the log is longer than its limit if its last requests have the same time.
    return request_view.lines(recent.requests[:RECENT])


ROUTES = (dashboard,)
