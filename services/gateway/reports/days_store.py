"""Writes and reads the sums of days. Every method may raise Unavailable."""

from datetime import date

from shared.api.business import MOST_ROWS, ActiveUsers, BusinessReport, BusinessRow, BusinessSum, GetBusinessReport
from shared.stores import database
from shared.types import MicroCredits

#: Enough for a million requests.
_ROLL_SECONDS = 55.0
_REPORT_SECONDS = 20.0


class DaysStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def open_days(self) -> None:
        """Add every day since the last known one, including today, to the days to sum up."""
        await self._database.run("open_days")

    async def roll_one(self) -> date | None:
        """Sum up pieces until a day is complete; None if nothing is left, or other gateways are doing it."""
        while (piece := await self._roll_piece()) is not None:
            if piece["is_last"]:
                day: date = piece["day"]
                return day
        return None

    async def _roll_piece(self) -> database.DatabaseRow | None:
        """Sum up one piece. Nothing is counted twice: later requests add themselves (see migration 0014)."""
        async with self._database.transaction(deadline_seconds=_ROLL_SECONDS) as transaction:
            piece = await transaction.row("take_roll_piece")
            if piece is None:
                return None
            if piece["is_again"]:
                await transaction.run("clear_day", piece["day"])
            await transaction.run("roll_piece", piece["since"], piece["until"])
            if piece["is_last"]:
                await transaction.run("join_pieces", piece["day"])
            await transaction.run("end_piece", piece["day"], piece["until"], piece["is_last"])
        return piece

    async def close_days(self, days: int) -> None:
        """Freeze days whose rows may be deleted after ``days``: they are never summed up again."""
        await self._database.run("close_days", days)

    async def report(self, query: GetBusinessReport) -> BusinessReport:
        """Report on everybody; a consistent snapshot except for refunds and active users."""
        async with self._database.transaction(deadline_seconds=_REPORT_SECONDS) as transaction:
            # One row is the total, and another tells whether there are more than MOST_ROWS.
            found = await transaction.rows("report_days", query.since, query.until, query.by.value, query.label, MOST_ROWS + 2)
            refunded = await transaction.value("sum_given_back", query.since, query.until)
            active = await transaction.row("count_active_users")
        assert active is not None  # an aggregate without GROUP BY always has one row
        total = next((_sum(row) for row in found if row["is_total"] and row["succeeded"] is not None), BusinessSum())
        rows = tuple(BusinessRow(row["name"], _sum(row)) for row in found if not row["is_total"])
        return BusinessReport(
            total=total,
            rows=rows[:MOST_ROWS],
            more=len(rows) > MOST_ROWS,
            given_back_micro=MicroCredits(refunded),
            active=ActiveUsers(hour=active["hour"], day=active["day"], week=active["week"], month=active["month"]),
        )


def _sum(row: database.DatabaseRow) -> BusinessSum:
    return BusinessSum(**{name: row[name] for name in BusinessSum.__struct_fields__})
