"""Stream the overview's values while the page is open."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import live_updates
from services.web.charts import usage_chart
from services.web.charts.usage_chart import UsageSpan
from services.web.http.event_response import EventResponse
from services.web.pages import overview
from services.web.request_context import PAGE_CALL_SECONDS, PageRequest
from shared.api import gateway, usage_report
from shared.types import RequestId

#: A report is expensive: it sorts all requests of its period by latency. With new requests, the pause is long enough that the reports of
#: one page keep the gateway busy for at most a twentieth of the time. Without new requests, LATEST_SECONDS applies.
SOONEST_SECONDS, LATEST_SECONDS = 1.0, 60.0
_PAUSE = 20


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
        self._visit = page_request
        self._span = span
        self._last: LastReport | None = None
        self._report: live_updates.Values = {}

    async def read(self) -> live_updates.Values:
        """Read the current values. Raises PeerError while the gateway is down."""
        page_request = self._visit
        quota, recent = await asyncio.gather(
            page_request.call(gateway.get_user_quota, gateway.GetUserQuota(), deadline_seconds=PAGE_CALL_SECONDS),
            page_request.call(
                usage_report.list_requests, usage_report.ListRequests(limit=overview.RECENT), deadline_seconds=PAGE_CALL_SECONDS
            ),
        )
        now = page_request.site.now()
        newest = recent.requests[0].id if recent.requests else None
        if is_due(self._last, newest, now):
            wanted = usage_chart.of_span(self._span, now)
            report = await page_request.call(usage_report.get_usage_report, wanted, deadline_seconds=PAGE_CALL_SECONDS)
            self._report = overview.report_values(report, wanted)
            self._last = LastReport(now, (page_request.site.now() - now).total_seconds(), newest)
        return (
            self._report | overview.quota_values(quota) | overview.recent_values(recent) | page_request.banner_values() | {"connection": ""}
        )


@get("/live/overview")
async def follow_overview(page_request: NamedDependency[PageRequest], span: FromQuery[str] = "") -> EventResponse:
    following = OverviewUpdates(page_request, usage_chart.read_span(span))
    return live_updates.answer(page_request.site.followers, str(page_request.person.user.id), following.read)


ROUTES = (follow_overview,)
