"""Show the monthly statements of node owners, and export them as CSV. Administrators see all; the gateway decides."""

from dataclasses import dataclass
from datetime import UTC, date, timedelta

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from features.business_report import contract as api
from features.business_report.contract import OwnerStatement, OwnerStatements
from features.business_report.lists.statements import list_statements
from features.business_report.web.report import REPORT_SECONDS
from services.web import csv_tables
from services.web.http import downloads
from services.web.pages.admin import node_view
from services.web.request_context import Page, PageRequest
from shared.lists.columns import Listing


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementPage:
    root: str
    found: OwnerStatements
    listing: Listing[OwnerStatement]
    month: str
    #: The months before and after it, such as 2026-10; a month in the future is empty.
    before: str
    after: str


@get(["/nodes/statement", "/admin/nodes/statement"])
async def show_statement(page_request: NamedDependency[PageRequest], month: FromQuery[str] = "") -> Page:
    found = await _find(page_request, month)
    first = date.fromisoformat(f"{found.month}-01")
    before, after = first - timedelta(days=1), first + timedelta(days=31)
    view = StatementPage(
        root=node_view.root_of(page_request.person),
        found=found,
        listing=list_statements(found.rows),
        month=f"{first:%B %Y}",
        before=f"{before:%Y-%m}",
        after=f"{after:%Y-%m}" if after.replace(day=1) <= _today(page_request) else "",
    )
    return page_request.page("business_report/statement.html", view)


@get(["/nodes/statement.csv", "/admin/nodes/statement.csv"])
async def download_statement(page_request: NamedDependency[PageRequest], month: FromQuery[str] = "") -> Page:
    found = await _find(page_request, month)
    headers = downloads.attachment(f"aimesh-statement-{found.month}.csv")
    lines = ([", ".join(cell) if isinstance(cell, tuple) else cell for cell in msgspec.structs.astuple(row)] for row in found.rows)
    table = csv_tables.written((OwnerStatement.__struct_fields__, *lines))
    return Response(table, media_type=csv_tables.MEDIA_TYPE, headers=headers)


async def _find(page_request: PageRequest, month: str) -> OwnerStatements:
    wanted = api.GetOwnerStatements(month or f"{_today(page_request):%Y-%m}")
    return await page_request.call(api.get_owner_statements, wanted, deadline_seconds=REPORT_SECONDS)


def _today(page_request: PageRequest) -> date:
    return page_request.app.now().astimezone(UTC).date()
