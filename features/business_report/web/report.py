"""Show the usage of the mesh and the value of its tokens by day, model, route, user or node owner, and export them as CSV."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, timedelta

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from features.business_report.lists import report_rows
from features.business_report.lists.report_rows import ReportLine as Line
from services.web import csv_tables
from services.web.charts import usage_chart
from services.web.charts.usage_chart import NOTHING, number
from services.web.http import downloads, forms
from services.web.request_context import Page, PageRequest
from shared.api import business
from shared.api.business import BusinessGrouping, BusinessReport, BusinessSum, GetBusinessReport, NewAccounts

#: The periods in days; the first is the default.
DAYS = (7, 30, 90, 365)
#: A year of a busy mesh takes the gateway many seconds.
REPORT_SECONDS = 25.0
#: Grouping -> its label in the switch; and as the heading of the first column.
CHOICES = {
    BusinessGrouping.DAY: "Day",
    BusinessGrouping.MODEL: "Model",
    BusinessGrouping.USER: "User",
    BusinessGrouping.OWNER: "Owner",
    BusinessGrouping.LABEL: "Labels",
    BusinessGrouping.ROUTE: "Route",
    BusinessGrouping.TARGET: "Target",
    BusinessGrouping.ORGANIZATION: "Organization",
    BusinessGrouping.KEY: "Key",
    BusinessGrouping.PLAN: "Plan",
}
HEADS = CHOICES | {BusinessGrouping.OWNER: "Node owner", BusinessGrouping.LABEL: "Node labels"}
_NAMELESS = {
    BusinessGrouping.MODEL: "No model",
    BusinessGrouping.OWNER: "No owner or node",
    BusinessGrouping.LABEL: "No labels or node",
    BusinessGrouping.ROUTE: "No route",
    BusinessGrouping.TARGET: "No route",
    BusinessGrouping.KEY: "No key",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRowView:
    """A row of the report; details are empty where there are none."""

    name: str
    #: The user's page; empty for other rows.
    page: str = ""
    requests: str
    requests_detail: str
    tokens: str
    tokens_detail: str
    value: str
    balances: str
    balances_detail: str
    upstream: str
    upstream_detail: str
    conversations: str
    conversations_detail: str
    cached: str
    cached_detail: str
    users: str
    liked: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTotalView:
    balances: str
    balances_detail: str
    active: str
    active_detail: str
    new: str
    new_detail: str
    liked: str
    liked_detail: str


def list_rows(report: BusinessReport, shown: tuple[Line, ...], by: BusinessGrouping) -> tuple[ReportRowView, ...]:
    """Return the rows. ``shown`` has the report's rows with their names."""
    has_page = by in (BusinessGrouping.USER, BusinessGrouping.OWNER)
    return tuple(
        _texts(line.name or _NAMELESS.get(by, NOTHING), f"/admin/users/{row.name}" if has_page and row.name else "", row.sum)
        for row, line in zip(report.rows, shown, strict=True)
    )


def report_total(report: BusinessReport, new: NewAccounts | None) -> ReportTotalView:
    active, total_ = report.active, report.total
    rated = total_.thumbs_up + total_.thumbs_down
    back = f", {usage_chart.cost(report.given_back_micro)} refunded" if report.given_back_micro else ""
    return ReportTotalView(
        balances=usage_chart.cost(report_rows.from_balances(report)),
        balances_detail=f"credits{back}",
        active=number(active.month),
        active_detail=f"in 30 days; {number(active.week)} in 7, {number(active.day)} in 24 hours, {number(active.hour)} in the last hour",
        new=NOTHING if new is None else number(report_rows.registered(new)),
        new_detail="" if new is None else f"and {_counted(report_rows.keys_made(new), 'key')} created",
        liked=f"{100 * total_.thumbs_up / rated:.0f} %" if rated else NOTHING,
        liked_detail=f"{number(total_.thumbs_up)} of {number(rated)} ratings" if rated else "no ratings yet",
    )


def _texts(name: str, page: str, one: BusinessSum) -> ReportRowView:
    speed = report_rows.tokens_per_second(one)
    failed = one.failed + one.timed_out
    details = [f"{number(failed)} failed"] if failed else []
    details += [f"{number(one.limited)} rate limited"] if one.limited else []
    return ReportRowView(
        name=name,
        page=page,
        requests=number(one.requests),
        requests_detail=", ".join(details),
        tokens=number(one.prompt_tokens + one.completion_tokens),
        tokens_detail="" if speed is None else f"{speed:.1f} per second",
        value=usage_chart.cost(one.token_value_micro),
        balances=usage_chart.cost(one.cost_micro),
        balances_detail=_each(one, one.requests, "per request"),
        upstream=usage_chart.cost(one.upstream_micro),
        upstream_detail=_internal(one),
        conversations=number(one.conversations),
        conversations_detail=_each(one, one.conversations, "each"),
        cached=f"{100 * one.cached / one.requests:.0f} %" if one.requests else NOTHING,
        cached_detail=f"saved {usage_chart.cost(one.saved_micro)}" if one.saved_micro else "",
        users=number(one.users),
        liked=f"{number(one.thumbs_up)} up, {number(one.thumbs_down)} down" if one.thumbs_up or one.thumbs_down else NOTHING,
    )


def _each(one: BusinessSum, count: int, what: str) -> str:
    share = report_rows.each(one.cost_micro, count)
    return f"{usage_chart.cost(share)} {what}" if share else ""


def _internal(one: BusinessSum) -> str:
    share = report_rows.internal_share(one)
    avoided = f"{usage_chart.cost(one.avoided_micro)} avoided, " if one.avoided_micro else ""
    return "" if share is None else f"{avoided}{100 * share:.0f} % internal"


def _counted(count: int, noun: str) -> str:
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


@dataclass(frozen=True, slots=True)
class ReportChoice:
    text: str
    address: str
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    days: int
    about: str
    times: tuple[ReportChoice, ...]
    subjects: tuple[ReportChoice, ...]
    download: str
    #: None if the gateway did not respond; then there are no rows either.
    whole: ReportTotalView | None
    rows: tuple[ReportRowView, ...] = ()
    total: ReportRowView | None = None
    is_cut: bool = False
    #: Providers asked for money, or own machines avoided it.
    has_upstream: bool = False


@get("/admin/report")
async def show_report(page_request: NamedDependency[PageRequest], days: FromQuery[str] = "", by: FromQuery[str] = "") -> Page:
    span, subject = forms.read_days(days, DAYS), _read_subject(by)
    request = _build_request(page_request, span, subject)
    report, new = await asyncio.gather(
        page_request.fetch(business.get_business_report, request, deadline_seconds=REPORT_SECONDS),
        page_request.fetch(business.count_new_accounts, business.CountNewAccounts(request.since, request.until)),
    )
    lines = await _named(page_request, report, request) if report else ()
    view = ReportPage(
        days=span,
        about=HEADS[subject],
        times=tuple(ReportChoice(f"{each} days", _address(each, subject), each == span) for each in DAYS),
        subjects=tuple(ReportChoice(word, _address(span, each), each is subject) for each, word in CHOICES.items()),
        download=_address(span, subject, "/admin/report.csv"),
        whole=report_total(report, new) if report else None,
        rows=list_rows(report, lines, subject) if report else (),
        total=_texts("Total", "", report.total) if report else None,
        is_cut=report.more if report else False,
        has_upstream=bool(report and (report.total.upstream_micro or report.total.avoided_micro)),
    )
    return page_request.page("business_report/report.html", view)


@get("/admin/report.csv")
async def download_report(page_request: NamedDependency[PageRequest], days: FromQuery[str] = "", by: FromQuery[str] = "") -> Page:
    request = _build_request(page_request, forms.read_days(days, DAYS), _read_subject(by))
    report = await page_request.call(business.get_business_report, request, deadline_seconds=REPORT_SECONDS)
    lines = await _named(page_request, report, request)
    # Without a total row, which a spreadsheet would count twice.
    table = csv_tables.written((report_rows.head(request.by), *map(report_rows.cells, lines)))
    headers = downloads.attachment(f"aimesh-report-{request.by}-{request.since}.csv")
    return Response(table, media_type=csv_tables.MEDIA_TYPE, headers=headers)


async def _named(page_request: PageRequest, report: BusinessReport, request: GetBusinessReport) -> tuple[Line, ...]:
    """Return the rows with user names, or with ids while auth is down."""
    ids = report_rows.ids_in(report, request.by)
    found = await page_request.fetch(business.name_users, business.NameUsers(ids)) if ids else None
    return report_rows.lines(report, request, found.names if found else {})


def _build_request(page_request: PageRequest, days: int, by: BusinessGrouping) -> GetBusinessReport:
    until = page_request.app.now().astimezone(UTC).date() + timedelta(days=1)
    return GetBusinessReport(until - timedelta(days=days), until, by)


def _address(days: int, by: BusinessGrouping, path: str = "/admin/report") -> str:
    return f"{path}?days={days}&by={by}"


def _read_subject(text: str) -> BusinessGrouping:
    return BusinessGrouping(text) if text in set(BusinessGrouping) else BusinessGrouping.DAY
