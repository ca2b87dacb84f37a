"""Show, export and verify the audit log."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from litestar.response import Stream

from services.web import paged_search
from services.web.http import downloads, forms
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import audit
from shared.api.audit import AuditReport, AuditRow, Result
from shared.lists.audit import AUDIT, RESULTS
from shared.lists.columns import Column, Tone

ROWS_OF_A_PAGE = 100
#: Verification reads every row; verify a longer log from an export.
VERIFY_SECONDS = 60.0
EXPORT_SECONDS = 3600.0
_MAX = 200
_WHOLE_LOG = "leave it empty for the whole log"


class AuditFilters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The filters as typed; empty means all."""

    chain: str = ""
    actor: str = ""
    action: str = ""
    result: str = ""
    since: str = ""


class ExportForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str = ""
    since: str = ""


EVERYTHING = AuditFilters()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    rows: tuple[AuditRow, ...]
    filters: AuditFilters
    results: ClassVar[Mapping[Result, tuple[str, Tone]]] = RESULTS
    columns: ClassVar[Mapping[str, Column[AuditRow]]] = {column.title: column for column in AUDIT.columns}
    empty: ClassVar[str] = AUDIT.empty
    #: The link to older rows; empty on the last page.
    older: str = ""
    is_later_page: bool = False
    #: Set in the response to a verification.
    report: AuditReport | None = None

    @property
    def is_filtered(self) -> bool:
        return self.filters != EVERYTHING


@get("/admin/audit")
async def show_audit(
    page_request: NamedDependency[PageRequest],
    *,
    chain: FromQuery[str] = "",
    actor: FromQuery[str] = "",
    action: FromQuery[str] = "",
    result: FromQuery[str] = "",
    since: FromQuery[str] = "",
    before: FromQuery[str] = "",
) -> Page:
    typed = [text.strip()[:_MAX] for text in (chain, actor, action, result, since)]
    filters = AuditFilters(*typed)
    try:
        answer = await page_request.submit(audit.list_audit, build_request(filters, before))
    except errors.CallerError as error:
        return page_request.page("admin/audit.html", AuditPage(rows=(), filters=filters), problem=error)
    view = AuditPage(rows=answer.rows, filters=filters, older=older_than(answer.rows, filters), is_later_page=bool(before))
    return page_request.page("admin/audit.html", view)


@post("/admin/audit/verify")
async def verify(page_request: NamedDependency[PageRequest]) -> Page:
    """Verify the log. Responds with the page itself, because the result is not stored."""
    chain = await page_request.read_field("chain", "")
    filters = AuditFilters(chain=chain.strip())
    report: AuditReport | None = None
    problem: errors.AimeshError | None = None
    try:
        report = await page_request.submit(audit.verify_audit, audit.VerifyAudit(filters.chain or None), deadline_seconds=VERIFY_SECONDS)
    except errors.DeadlineExceeded:
        hint = "run `aicli admin audit verify`, which has no time limit"
        problem = errors.DeadlineExceeded(f"verification did not finish within {VERIFY_SECONDS:.0f} s", hint=hint)
    except (errors.CallerError, errors.PeerError) as error:
        problem = error
    answer = await page_request.fetch(audit.list_audit, build_request(filters, ""))
    rows = answer.rows if answer else ()
    view = AuditPage(rows=rows, filters=filters, older=older_than(rows, filters), report=report)
    return page_request.page("admin/audit.html", view, problem=problem)


@post("/admin/audit/export", status_code=HTTPStatus.OK)
async def export(page_request: NamedDependency[PageRequest]) -> Stream:
    """Stream an export. This is a POST because the log records it, and so that no foreign link can trigger it."""
    form = await page_request.read_form(ExportForm)
    lines = _lines(page_request, audit.ExportAudit(form.chain.strip() or None, read_since(form.since)))
    return await downloads.stream(lines, f"aimesh-audit-{page_request.app.now():%Y-%m-%d}.jsonl", "application/x-ndjson")


def build_request(filters: AuditFilters, before: str) -> audit.ListAudit:
    """Return the request for these filters. Raises BadRequest."""
    return audit.ListAudit(
        chain=filters.chain or None,
        actor=filters.actor or None,
        action=filters.action or None,
        result=forms.read_choice(Result, filters.result, "result") if filters.result else None,
        since=read_since(filters.since),
        before=forms.read_moment(before, "before", hint=_WHOLE_LOG),
        limit=ROWS_OF_A_PAGE,
    )


def read_since(text: str) -> datetime | None:
    return forms.read_moment(text, "since", hint=_WHOLE_LOG)


def older_than(rows: tuple[AuditRow, ...], filters: AuditFilters) -> str:
    """Return the link to the rows before these; empty if there are none."""
    if len(rows) < ROWS_OF_A_PAGE:
        return ""
    chosen = {name: value for name, value in msgspec.structs.asdict(filters).items() if value}
    return paged_search.address("/admin/audit", chosen | {"before": rows[-1].act.at.isoformat()})


async def _lines(page_request: PageRequest, request: audit.ExportAudit) -> AsyncGenerator[bytes]:
    credential = page_request.person.access_token
    async with page_request.app.caller.stream(audit.export_audit, request, deadline_seconds=EXPORT_SECONDS, credential=credential) as rows:
        async for row in rows:
            yield msgspec.json.encode(row) + b"\n"
