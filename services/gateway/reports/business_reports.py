"""Serves the report on everybody's usage, and sums up days."""

from services.gateway.reports.days_store import DaysStore
from shared import errors
from shared.api import business
from shared.api.business import BusinessGrouping, GetBusinessReport
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

_log = logs.get(part="reports")


class BusinessReports:
    """Handlers without state. Any number of gateways may sum up at the same time: each takes another day."""

    def __init__(self, store: DaysStore, *, request_log_days: int) -> None:
        self._store = store
        self._days = request_log_days

    @serves(business.get_business_report)
    async def get_business_report(self, request: GetBusinessReport, call: RpcCall) -> business.BusinessReport:
        check(request)
        return await self._store.report(request)

    async def roll(self) -> None:
        """Sum up everything that is over. Raises Unavailable."""
        await self._store.open_days()
        while (day := await self._store.roll_one()) is not None:
            _log.info("usage day summed up", day=day.isoformat())
        await self._store.close_days(self._days)


def check(query: GetBusinessReport) -> None:
    """Raise BadRequest for an invalid or too long period, and for a label without ``by``."""
    days = (query.until - query.since).days
    if days <= 0:
        raise errors.BadRequest("since must be before until", hint="until is the first day that is not included")
    if days > business.MOST_DAYS:
        raise errors.BadRequest(f"the period has {days} days; the limit is {business.MOST_DAYS}", hint="choose a shorter period")
    if query.label is not None and query.by is not BusinessGrouping.LABEL:
        raise errors.BadRequest("a label requires grouping by label", hint='leave it out, or set by to "label"')
