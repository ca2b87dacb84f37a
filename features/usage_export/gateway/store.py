"""Reads the outbox, and moves the cursors of its sinks. Every method may raise Unavailable."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from operator import attrgetter
from typing import Literal
from uuid import UUID

from features.usage_export.contract import AccountTotal, SinkExcess, UsageSink, UsageTotal
from features.usage_export.rules import usage_events
from features.usage_export.rules.usage_events import DaySums, UsageData, UsageEvent, UsageSum
from shared import errors
from shared.stores import database
from shared.types import MicroCredits, TenantId

Unit = Literal["request", "minute"]
ExportSession = database.Leadership
REFUSALS = database.Refusal

#: For a minute at 300 requests a second.
_MINUTE_ROWS = 20_000
_SUM_SECONDS = 600.0
_DELETED_ROWS = 10_000
_SHOWN_ACCOUNTS = 100
#: For one or two milliseconds of an event loop.
_PAGE_SUMS = 250
_BEFORE_ALL = (datetime.fromtimestamp(0, UTC), "", UUID(int=0), False)


class OutboxFence:
    """Decides up to which number nothing can still commit. Pure; forget it with the session, because a standby may take over.

    A number is drawn before its transaction commits, so a lower one may commit after a higher one. A fence (``fence_outbox``) is a number
    and a transaction id that was drawn after it: once all transactions before that id have ended, all numbers up to it are decided.
    """

    def __init__(self) -> None:
        self.decided = 0
        self._waiting: tuple[int, int] | None = None

    def observe(self, number: int, xid: int, ended_before: int) -> None:
        """Take a new fence, and the first transaction id that had not ended when it was asked for."""
        if self._waiting is not None and ended_before >= self._waiting[1]:
            self.decided, self._waiting = self._waiting[0], None
        if self._waiting is None:
            self._waiting = number, xid


@dataclass(frozen=True, slots=True)
class UsageClaim:
    """The events that a sink gets next; the same each time until it has acknowledged them."""

    sink: str
    up_to: int
    events: Sequence[UsageEvent]
    is_full: bool
    #: Since when it may have some of them.
    doubtful_since: datetime | None
    claimed_at: datetime


class AcknowledgedSum(AccountTotal, frozen=True, kw_only=True):
    """What a sink has acknowledged of an account's requests of a day."""

    sink: str


@dataclass(frozen=True, slots=True)
class SumChanges:
    """How far the sums that the sinks have acknowledged have changed."""

    #: The last transaction that changed any; 0 without sums.
    newest: int
    #: Of the transactions from this one on, some may not have been visible.
    ended_before: int


class OutboxStore:
    def __init__(self, opened: database.Database, source: str) -> None:
        self._database, self._source = opened, source

    async def add_sinks(self, names: Sequence[str]) -> None:
        await self._database.run("add_sinks", names)

    @asynccontextmanager
    async def leadership(self, sink: str) -> AsyncIterator[ExportSession]:
        """Open a session for electing the gateway that sends to a sink. Its errors about statements become Unavailable, too."""
        try:
            async with self._database.leadership(f"usage_export.{sink}") as session:
                yield session
        except REFUSALS as error:
            # Without the error's text, which may quote a row.
            raise errors.Unavailable(f"PostgreSQL refused a statement: {type(error).__name__}") from error

    async def claim(self, session: ExportSession, sink: str, fence: OutboxFence, unit: Unit, batch: int) -> UsageClaim | None:
        async with session.transaction() as transaction:
            found = await transaction.row("fence_outbox")
            assert found is not None  # a function returns a row
            fence.observe(found["number"], found["xid"], found["ended_before"])
        async with session.transaction() as transaction:
            most = batch if unit == "request" else _MINUTE_ROWS
            claimed = await transaction.row("claim_usage", sink, fence.decided, most, unit)
            if claimed is None:
                return None
            since, up_to = claimed["sent_number"], claimed["sending_number"]
            rows = await transaction.rows(f"list_usage_by_{claimed['sending_unit']}", since, up_to)
        events = [self._event(row) for row in rows]
        return UsageClaim(sink, up_to, events, claimed["rows"] >= most, claimed["doubtful_since"], claimed["claimed_at"])

    def _event(self, row: database.DatabaseRow) -> UsageEvent:
        return UsageEvent(row["id"], row["owner"], row["settled_at"], UsageData(*usage_events.data_columns(row)), self._source)

    async def acknowledge(self, session: ExportSession, claim: UsageClaim) -> None:
        sums = usage_events.sum_up((event.time.date(), event.total) for event in claim.events)
        async with session.transaction() as transaction:
            await transaction.run("add_acknowledged_accounts", claim.sink, claim.up_to)
            if await transaction.run("acknowledge_usage", claim.sink, claim.up_to):
                tokens, micros = [one.tokens for one in sums.values()], [one.cost_micro for one in sums.values()]
                await transaction.run("add_acknowledged", claim.sink, list(sums), tokens, micros)

    async def record_error(self, session: ExportSession, claim: UsageClaim, error: str, *, may_be_stored: bool) -> None:
        async with session.transaction() as transaction:
            since = claim.doubtful_since or (claim.claimed_at if may_be_stored else None)
            await transaction.run("record_sink_error", claim.sink, error, since)

    async def sum_days(self, sink: str, since: date) -> DaySums:
        """Sum up what a sink must have, by account and day."""
        rows = await self._database.rows("sum_usage_days", sink, since, deadline_seconds=_SUM_SECONDS)
        return {(row["owner"], row["day"]): UsageSum(row["tokens"], row["cost_micro"]) for row in rows}

    async def list_metered(self, owners: Iterable[TenantId]) -> dict[TenantId, str]:
        """Return Stripe's ids of those owners who are its customers."""
        return {row["owner"]: row["customer"] for row in await self._database.rows("list_metered", list(owners))}

    async def sum_metered(self, sink: str, since: datetime, until: datetime) -> dict[str, int]:
        """Sum up the tokens that a meter must have of each customer."""
        rows = await self._database.rows("sum_metered", sink, since, until, deadline_seconds=_SUM_SECONDS)
        return {row["customer"]: row["tokens"] for row in rows}

    async def list_acknowledged(self, sink: str, since: date) -> dict[date, UsageSum]:
        rows = await self._database.rows("list_acknowledged_days", sink, since)
        return {row["day"]: UsageSum(row["tokens"], row["cost_micro"]) for row in rows}

    async def sum_unexported(self, since: date) -> MicroCredits:
        micro: MicroCredits = await self._database.value("sum_unexported", since, deadline_seconds=_SUM_SECONDS)
        return micro

    async def record_comparison(self, sink: str, difference: UsageSum) -> None:
        await self._database.run("record_comparison", sink, *difference)

    async def read_sum_changes(self) -> SumChanges:
        row = await self._database.row("read_sum_changes")
        assert row is not None  # it has no FROM
        return SumChanges(row["newest"], row["ended_before"])

    def list_acknowledged_accounts(self) -> AsyncIterator[list[AcknowledgedSum]]:
        """Yield what the sinks have acknowledged in 40 days, in pages, the oldest days first."""
        return self._list_sums("list_acknowledged_accounts", ("since", "sink", "owner", "is_kept"), *_BEFORE_ALL)

    def list_changed_accounts(self, known: SumChanges) -> AsyncIterator[list[AcknowledgedSum]]:
        """Yield what has changed since then, and perhaps some of what had."""
        return self._list_sums(
            "list_changed_accounts", ("changed_by", "since", "sink", "owner", "is_kept"), known.ended_before, *_BEFORE_ALL
        )

    async def _list_sums(self, query: str, place: Sequence[str], *after: object) -> AsyncIterator[list[AcknowledgedSum]]:
        while rows := await self._database.rows(query, *after, _PAGE_SUMS, deadline_seconds=60):
            yield [AcknowledgedSum(**{name: row[name] for name in AcknowledgedSum.__struct_fields__}) for row in rows]
            if len(rows) < _PAGE_SUMS:
                return
            after = tuple(rows[-1][name] for name in place)

    async def keep_acknowledged(self, sums: str) -> int:
        """Keep what files say (a JSON array of AcknowledgedSum) and this database doesn't know; return how many sums that are."""
        count: int = await self._database.value("keep_acknowledged", sums, deadline_seconds=60)
        return count

    async def list_sinks(self, names: Sequence[str]) -> tuple[UsageSink, ...]:
        rows = await self._database.rows("list_sinks", names)
        of_sinks = groupby(await self._database.rows("list_excess", names), lambda row: row["sink"])
        excess = {sink: _sum_excess(list(found)) for sink, found in of_sinks}
        return tuple(
            UsageSink(**{name: row[name] for name in UsageSink.__struct_fields__ if name != "excess"}, excess=excess.get(row["name"]))
            for row in rows
        )

    async def delete_old(self, sinks: Iterable[str]) -> None:
        while await self._database.run("delete_exported", list(sinks), _DELETED_ROWS, deadline_seconds=60) == _DELETED_ROWS:
            pass
        await self._database.run("delete_acknowledged_accounts", deadline_seconds=60)


def _sum_excess(rows: Sequence[database.DatabaseRow]) -> SinkExcess:
    accounts = [AccountTotal(**{name: row[name] for name in AccountTotal.__struct_fields__}) for row in rows]
    totals = {name: sum(map(attrgetter(name), accounts)) for name in UsageTotal.__struct_fields__}
    return SinkExcess(**totals, found_at=max(row["found_at"] for row in rows), accounts=tuple(accounts[:_SHOWN_ACCOUNTS]))
