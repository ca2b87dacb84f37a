"""Show usage and revenue of the mesh by day, model, user or node owner, and export them as CSV."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, timedelta

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import csv_tables
from services.web.http import downloads, forms
from services.web.pages.admin import report_view
from services.web.pages.admin.report_view import ReportRowView, ReportTotalView
from services.web.request_context import Page, PageRequest
from shared import business_report_rows
from shared.api import business
from shared.api.business import BusinessGrouping, BusinessReport, GetBusinessReport
from shared.business_report_rows import ReportLine as Line

#: The periods in days; the first is the default.
DAYS = (7, 30, 90, 365)
#: A year of a busy mesh takes the gateway many seconds.
REPORT_SECONDS = 25.0


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
        about=report_view.HEADS[subject],
        times=tuple(ReportChoice(f"{each} days", _address(each, subject), each == span) for each in DAYS),
        subjects=tuple(ReportChoice(word, _address(span, each), each is subject) for each, word in report_view.CHOICES.items()),
        download=_address(span, subject, "/admin/report.csv"),
        whole=report_view.whole(report, new) if report else None,
        rows=report_view.rows(report, lines, subject) if report else (),
        total=report_view.total(report) if report else None,
        is_cut=report.more if report else False,
    )
    return page_request.page("admin/report.html", view, here="admin")


@get("/admin/report.csv")
async def download_report(page_request: NamedDependency[PageRequest], days: FromQuery[str] = "", by: FromQuery[str] = "") -> Page:
    request = _build_request(page_request, forms.read_days(days, DAYS), _read_subject(by))
    report = await page_request.call(business.get_business_report, request, deadline_seconds=REPORT_SECONDS)
    table = csv_tables.business(request.by, await _named(page_request, report, request))
    headers = downloads.attachment(f"aimesh-report-{request.by}-{request.since}.csv")
    return Response(table, media_type=csv_tables.MEDIA_TYPE, headers=headers)


async def _named(page_request: PageRequest, report: BusinessReport, request: GetBusinessReport) -> tuple[Line, ...]:
    """Return the rows with user names, or with ids while auth is down."""
    ids = business_report_rows.ids_in(report, request.by)
    found = await page_request.fetch(business.name_users, business.NameUsers(ids)) if ids else None
    return business_report_rows.lines(report, request, found.names if found else {})


def _build_request(page_request: PageRequest, days: int, by: BusinessGrouping) -> GetBusinessReport:
    until = page_request.app.now().astimezone(UTC).date() + timedelta(days=1)
    return GetBusinessReport(until - timedelta(days=days), until, by)


def _address(days: int, by: BusinessGrouping, path: str = "/admin/report") -> str:
    return f"{path}?days={days}&by={by}"


def _read_subject(text: str) -> BusinessGrouping:
    return BusinessGrouping(text) if text in set(BusinessGrouping) else BusinessGrouping.DAY


ROUTES = (show_report, download_report)
