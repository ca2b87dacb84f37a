"""Show usage by day, model and key, and export it as CSV."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import ClassVar

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import csv_tables, paged_search
from services.web.charts import usage_chart
from services.web.charts.usage_chart import SumLine, UsageChart, UsageMeasure
from services.web.http import downloads, forms
from services.web.pages import request_view
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import auth, usage_report
from shared.api.usage_report import GetUsageReport, UsageOfKey, UsageOfModel, UsageSummary
from shared.types import KeyId

#: The periods in days; the first is the default.
DAYS = (30, 90, 365)
#: A year of a busy account takes the gateway several seconds.
REPORT_SECONDS = 10.0
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ModelUsageView:
    of: UsageOfModel
    sums: SumLine
    #: The link to its requests in the log.
    log: str


@dataclass(frozen=True, slots=True)
class KeyUsageView:
    name: str
    sums: SumLine
    #: The link to its requests in the log; empty for signed-in sessions, which the log cannot filter.
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePage:
    days: int
    choices: ClassVar[tuple[int, ...]] = DAYS
    #: None if the gateway did not respond; then models and keys are empty.
    chart: UsageChart | None
    sums: SumLine
    models: tuple[ModelUsageView, ...]
    keys: tuple[KeyUsageView, ...]
    since: str
    until: str

    @property
    def is_empty(self) -> bool:
        return not self.models and not self.keys


@get("/usage")
async def show_usage(page_request: NamedDependency[PageRequest], days: FromQuery[str] = "", show: FromQuery[str] = "") -> Page:
    return await _page(page_request, days=forms.read_days(days, DAYS), measure=usage_chart.read_measure(show))


@get("/usage.csv")
async def download_usage(page_request: NamedDependency[PageRequest], since: FromQuery[str] = "", until: FromQuery[str] = "") -> Page:
    today = page_request.app.now().astimezone(UTC).date()
    try:
        last = _read_day(until, "until") or today
        first = _read_day(since, "since") or _days_before(last, DAYS[0] - 1)
        report = await page_request.call(usage_report.get_usage_report, _build_request(first, last), deadline_seconds=REPORT_SECONDS)
    except errors.BadRequest as error:
        return await _page(page_request, days=DAYS[0], measure=UsageMeasure.REQUESTS, typed=(since, until), problem=error)
    headers = downloads.attachment(f"aimesh-usage-{first}-{last}.csv")
    return Response(csv_tables.usage_by_day(report.buckets), media_type=csv_tables.MEDIA_TYPE, headers=headers)


async def _page(
    page_request: PageRequest,
    *,
    days: int,
    measure: UsageMeasure,
    typed: tuple[str, str] = ("", ""),
    problem: errors.CallerError | None = None,
) -> Page:
    wanted = usage_chart.last_days(page_request.app.now(), days)
    report, keys = await asyncio.gather(
        page_request.fetch(usage_report.get_usage_report, wanted, deadline_seconds=REPORT_SECONDS),
        page_request.fetch(auth.list_api_keys, auth.ListApiKeys()),
    )
    names = {key.id: key.name for key in keys.keys} if keys else {}
    shown = wanted.since.date(), (wanted.until - _DAY).date()
    since, until = (_typed_day(text) or day.isoformat() for text, day in zip(typed, shown, strict=True))
    view = UsagePage(
        days=days,
        chart=usage_chart.draw(report, measure, wanted.bucket) if report else None,
        sums=usage_chart.summed(report.total) if report else SumLine(),
        models=model_lines(report) if report else (),
        keys=key_lines(report, names) if report else (),
        since=since,
        until=until,
    )
    return page_request.page("usage.html", view, here="usage", problem=problem)


def model_lines(report: UsageSummary) -> tuple[ModelUsageView, ...]:
    """Return the lines, most used first."""
    ordered = sorted(report.models, key=lambda each: (-each.sum.requests, each.model))
    return tuple(
        ModelUsageView(each, usage_chart.summed(each.sum), paged_search.address("/requests", {"model": each.model})) for each in ordered
    )


def key_lines(report: UsageSummary, names: Mapping[KeyId, str]) -> tuple[KeyUsageView, ...]:
    """Return the lines, most used first."""
    ordered = sorted(report.keys, key=lambda each: (-each.sum.requests, str(each.key_id)))
    return tuple(_key_line(each, names) for each in ordered)


def _key_line(each: UsageOfKey, names: Mapping[KeyId, str]) -> KeyUsageView:
    log = "" if each.key_id is None else paged_search.address("/requests", {"key": str(each.key_id)})
    return KeyUsageView(request_view.key_name(each.key_id, names), usage_chart.summed(each.sum), log)


def _read_day(text: str, what: str) -> date | None:
    if not text.strip():
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise errors.BadRequest(f"{what} is not a date such as 2026-02-01", hint="choose both days again") from None


def _build_request(first: date, last: date) -> GetUsageReport:
    days = (last - first).days + 1
    if days < 1:
        raise errors.BadRequest("the first day is after the last", hint="choose both days again")
    if days > usage_report.MAX_BUCKETS:
        raise errors.BadRequest(f"{days} days exceed the maximum of {usage_report.MAX_BUCKETS}", hint="export in several parts")
    try:
        return GetUsageReport(since=_midnight(first), until=_midnight(last) + _DAY)
    except OverflowError:
        raise errors.BadRequest("until is out of range", hint="choose both days again") from None


def _typed_day(text: str) -> str:
    try:
        return date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        return ""


def _days_before(last: date, days: int) -> date:
    try:
        return last - days * _DAY
    except OverflowError:
        raise errors.BadRequest("since is out of range", hint="choose both days again") from None


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
