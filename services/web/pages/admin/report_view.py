"""Describe the business report: one row per day, model, user or node owner, and totals. Pure."""

from dataclasses import dataclass

from services.web.charts import usage_chart
from services.web.charts.usage_chart import NOTHING, number
from shared import business_report_rows
from shared.api.business import BusinessGrouping, BusinessReport, BusinessRow, BusinessSum, NewAccounts
from shared.business_report_rows import ReportLine as Line

#: Grouping -> its label in the switch; and as the heading of the first column.
CHOICES = {
    BusinessGrouping.DAY: "Day",
    BusinessGrouping.MODEL: "Model",
    BusinessGrouping.USER: "User",
    BusinessGrouping.OWNER: "Owner",
    BusinessGrouping.LABEL: "Labels",
}
HEADS = CHOICES | {BusinessGrouping.OWNER: "Node owner", BusinessGrouping.LABEL: "Node labels"}
_NAMELESS = {BusinessGrouping.MODEL: "No model", BusinessGrouping.OWNER: "No owner or node", BusinessGrouping.LABEL: "No labels or node"}


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
    credits: str
    credits_detail: str
    conversations: str
    conversations_detail: str
    cached: str
    cached_detail: str
    users: str
    liked: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTotalView:
    """The totals of the period."""

    revenue: str
    revenue_detail: str
    active: str
    active_detail: str
    new: str
    new_detail: str
    liked: str
    liked_detail: str


def rows(report: BusinessReport, shown: tuple[Line, ...], by: BusinessGrouping) -> tuple[ReportRowView, ...]:
    """Return the rows. ``shown`` has the report's rows with their names."""
    return tuple(_row(row, line.name or _NAMELESS.get(by, NOTHING), by) for row, line in zip(report.rows, shown, strict=True))


def total(report: BusinessReport) -> ReportRowView:
    return _texts("Total", "", report.total)


def whole(report: BusinessReport, new: NewAccounts | None) -> ReportTotalView:
    active, total_ = report.active, report.total
    rated = total_.thumbs_up + total_.thumbs_down
    back = f", {usage_chart.cost(report.given_back_micro)} refunded" if report.given_back_micro else ""
    return ReportTotalView(
        revenue=usage_chart.cost(business_report_rows.revenue(report)),
        revenue_detail=f"credits{back}",
        active=number(active.month),
        active_detail=f"in 30 days; {number(active.week)} in 7, {number(active.day)} in 24 hours, {number(active.hour)} in the last hour",
        new=NOTHING if new is None else number(business_report_rows.registered(new)),
        new_detail="" if new is None else f"and {_counted(business_report_rows.keys_made(new), 'key')} created",
        liked=f"{100 * total_.thumbs_up / rated:.0f} %" if rated else NOTHING,
        liked_detail=f"{number(total_.thumbs_up)} of {number(rated)} ratings" if rated else "no ratings yet",
    )


def _row(row: BusinessRow, name: str, by: BusinessGrouping) -> ReportRowView:
    return _texts(name, f"/admin/users/{row.name}" if by in (BusinessGrouping.USER, BusinessGrouping.OWNER) and row.name else "", row.sum)


def _texts(name: str, page: str, one: BusinessSum) -> ReportRowView:
    speed = business_report_rows.tokens_per_second(one)
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
        credits=usage_chart.cost(one.cost_micro),
        credits_detail=_each(one, one.requests, "per request"),
        conversations=number(one.conversations),
        conversations_detail=_each(one, one.conversations, "each"),
        cached=f"{100 * one.cached / one.requests:.0f} %" if one.requests else NOTHING,
        cached_detail=f"saved {usage_chart.cost(one.saved_micro)}" if one.saved_micro else "",
        users=number(one.users),
        liked=f"{number(one.thumbs_up)} up, {number(one.thumbs_down)} down" if one.thumbs_up or one.thumbs_down else NOTHING,
    )


def _each(one: BusinessSum, count: int, what: str) -> str:
    share = business_report_rows.each(one.cost_micro, count)
    return f"{usage_chart.cost(share)} {what}" if share else ""


def _counted(count: int, noun: str) -> str:
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"
