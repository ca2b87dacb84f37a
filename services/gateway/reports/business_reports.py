"""The RPC method for what everybody used, and how days are summed up."""

from services.gateway.reports.days_store import DaysStore
from shared import errors
from shared.api import business
from shared.api.business import BusinessGrouping, GetBusinessReport
from shared.rpc import RpcCall, serves
from shared.telemetry import logs

_log = logs.get(part="reports")


class BusinessReports:
    """Handlers; all state is in PostgreSQL. Any number of gateways may sum up at once: each takes another day."""

    def __init__(self, store: DaysStore, *, request_log_days: int) -> None:
        self._store = store
        self._days = request_log_days

    @serves(business.get_business_report)
    async def get_business_report(self, request: GetBusinessReport, call: RpcCall) -> business.BusinessReport:
        check(request)
        return await self._store.report(request)

    async def roll(self) -> None:
        """Sum up every hour that is over. Raises Unavailable."""
        await self._store.open_days()
        while (day := await self._store.roll_one()) is not None:
            _log.info("a day is summed up", day=day.isoformat())
        await self._store.close_days(self._days)


def check(asked: GetBusinessReport) -> None:
    """Raises BadRequest for a time that is none or too long, and for a label without its ``by``."""
    days = (asked.until - asked.since).days
    if days <= 0:
        raise errors.BadRequest("since and until: two days, the earlier one first", hint="until is the first day that is not in it")
    if days > business.MOST_DAYS:
        raise errors.BadRequest(f"that is {days} days; at most {business.MOST_DAYS} are summed up", hint="ask for a shorter time")
    if asked.label is not None and asked.by is not BusinessGrouping.LABEL:
        raise errors.BadRequest("a label, but not by label", hint='leave it out, or say by: "label"')
