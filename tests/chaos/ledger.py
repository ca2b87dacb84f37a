"""What the gateway's tables say about some users at rest. In the chaos suite, only this module reads them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from shared.types import RequestId, UserId
from tests.stacks import RunningStack


@dataclass(frozen=True, slots=True)
class Reservation:
    state: str
    reserved_micro: int
    settled_micro: int | None


@dataclass(frozen=True, slots=True)
class Logged:
    """A row of request_logs."""

    status: str
    prompt_tokens: int
    completion_tokens: int
    cost_micro: int


@dataclass(frozen=True, slots=True)
class Account:
    #: Topped-up credits, and those that release 0.3 included.
    left_micro: int
    reserved_micro: int
    #: Sum of the entries of both.
    entries_micro: int
    #: Number of open reservations, whenever they began.
    open: int
    #: What the plan has left, what open reservations hold of it, and the sum of its entries.
    left_tokens: int = 0
    held_tokens: int = 0
    entries_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    logged: dict[RequestId, Logged] = field(default_factory=dict)
    reservations: dict[RequestId, Reservation] = field(default_factory=dict)
    accounts: dict[UserId, Account] = field(default_factory=dict)
    #: Transfers whose entries do not add up to zero.
    lopsided: tuple[str, ...] = ()
    #: Usage of each request, according to its entries.
    charged: dict[RequestId, int] = field(default_factory=dict)

    def summary(self) -> str:
        """Summarize the books for the table of faults."""
        states = [reservation.state for reservation in self.reservations.values()]
        counted = ", ".join(
            f"{states.count(state):,} {state}" for state in ("settled", "released", "expired", "reserved") if state in states
        )
        return f"{counted or 'nothing reserved'}; {self.open} open at rest"

    @property
    def open(self) -> int:
        return sum(reservation.state == "reserved" for reservation in self.reservations.values())


async def read(stack: RunningStack, owners: Sequence[UserId], since: datetime | None = None) -> Books:
    """Read the requests since a moment of the database's clock, and all accounts and entries."""
    since = since or datetime.min.replace(tzinfo=UTC)
    async with stack.database("gateway") as database:
        ids = list(owners)
        logged = await database.fetch("SELECT * FROM request_logs WHERE user_id = ANY($1) AND created_at >= $2", ids, since)
        reservations = await database.fetch("SELECT * FROM reservations WHERE owner = ANY($1) AND created_at >= $2", ids, since)
        accounts = await database.fetch(
            """
            SELECT a.owner, a.included_micro + a.balance_micro AS left_micro, a.reserved_micro,
                   a.allowance_tokens AS left_tokens, a.held_tokens,
                   (SELECT count(*) FROM reservations r WHERE r.owner = a.owner AND r.state = 'reserved')::int AS open,
                   (SELECT coalesce(sum(e.amount_micro), 0)::bigint FROM entries e
                    WHERE e.owner = a.owner AND e.account IN ('included', 'balance')) AS entries_micro,
                   (SELECT coalesce(sum(e.amount_tokens), 0)::bigint FROM entries e
                    WHERE e.owner = a.owner AND e.account = 'allowance') AS entries_tokens
            FROM accounts a WHERE a.owner = ANY($1)
            """,
            ids,
        )
        lopsided = await database.fetch(
            "SELECT transfer, kind FROM entries WHERE owner = ANY($1) GROUP BY transfer, kind"
            " HAVING sum(amount_micro) <> 0 OR sum(amount_tokens) <> 0",
            ids,
        )
        charged = await database.fetch(
            "SELECT transfer, sum(amount_micro)::bigint AS micro FROM entries"
            " WHERE owner = ANY($1) AND kind = 'usage' AND account = 'revenue' GROUP BY transfer",
            ids,
        )
    return Books(
        logged={row["id"]: _logged(row) for row in logged},
        reservations={row["request_id"]: Reservation(row["state"], row["reserved_micro"], row["settled_micro"]) for row in reservations},
        accounts={row["owner"]: Account(**{name: row[name] for name in Account.__dataclass_fields__}) for row in accounts},
        lopsided=tuple(f"{row['kind']} {row['transfer']}" for row in lopsided),
        charged={row["transfer"]: row["micro"] for row in charged},
    )


def _logged(row: asyncpg.Record) -> Logged:
    return Logged(row["status"], row["prompt_tokens"], row["completion_tokens"], row["cost_micro"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What customers have used, paid and owed, and their invoices."""

    #: Tokens and micro-credits of each request.
    used: dict[UserId, dict[UUID, tuple[int, int]]]
    #: Micro-credits of each.
    top_ups: dict[UserId, list[int]]
    #: Micro-credits at the end of a period, and minor units of the invoices about them, by the order.
    owed: dict[UserId, dict[UUID, int]]
    overage: dict[UserId, dict[UUID, int]]
    #: Numbers of the invoices about a month of a plan.
    fees: dict[UserId, list[str]]
    #: At the provider.
    customers: dict[UserId, str | None]
    #: Of all invoices, by number.
    documents: dict[str, str]


async def end_month(stack: RunningStack, owner: UserId) -> datetime:
    """Let a month pass for an account. Return when it ended."""
    async with stack.database("gateway") as database:
        ended: datetime = await database.fetchval(
            "UPDATE accounts SET anchor = now(), period_end = now() WHERE owner = $1 RETURNING anchor", owner
        )
    return ended


async def end_months_again(stack: RunningStack, owner: UserId, ends: Sequence[datetime]) -> None:
    """Let months that a restored database has forgotten end when they did."""
    async with stack.database("gateway") as database:
        for ended in ends:
            await database.execute("UPDATE accounts SET anchor = $2, period_end = $2 WHERE owner = $1 AND anchor < $2", owner, ended)
            await database.execute("SELECT open_account($1, 0, true)", owner)


async def find_open_invoice(stack: RunningStack, owner: UserId) -> str | None:
    async with stack.database("gateway") as database:
        found: str | None = await database.fetchval(
            "SELECT number FROM invoices WHERE owner = $1 AND paid_at IS NULL AND void_by IS NULL ORDER BY number LIMIT 1", owner
        )
    return found


async def be_late(stack: RunningStack, number: str) -> bool:
    """Let an invoice be three weeks old, so that its last reminder is due."""
    async with stack.database("gateway") as database:
        await database.execute("ALTER TABLE invoices DISABLE TRIGGER invoices_are_immutable")
        await database.execute(
            "UPDATE invoices SET created_at = now() - interval '22 days', due_at = now() - interval '8 days', reminders = 2,"
            " reminded_at = now() - interval '4 days' WHERE number = $1", number,
        )  # fmt: skip
        await database.execute("ALTER TABLE invoices ENABLE TRIGGER invoices_are_immutable")
    return True


async def read_plan(stack: RunningStack, owner: UserId) -> str | None:
    """Return the plan, without its version."""
    async with stack.database("gateway") as database:
        found: str | None = await database.fetchval("SELECT split_part(plan, '@', 1) FROM subscriptions WHERE owner = $1", owner)
    return found


async def list_deferred(stack: RunningStack) -> list[tuple[str, str]]:
    """Return the kinds and ids of items that were put aside."""
    async with stack.database("gateway") as database:
        return [(row["kind"], row["id"]) for row in await database.fetch("SELECT kind, id FROM deferred_items")]


async def count_restores(stack: RunningStack) -> int:
    async with stack.database("gateway") as database:
        found: int = await database.fetchval("SELECT count(*) FROM database_restores")
    return found


async def count_log_lines(stack: RunningStack) -> int:
    """Return how many lines the recovery log has."""
    async with stack.database("gateway") as database:
        found: int = await database.fetchval("SELECT coalesce(max(number), 0) FROM recovery_log")
    return found


async def is_billed(stack: RunningStack, owner: UserId) -> bool:
    """Return whether the present period has begun, and all that was owed before is billed."""
    async with stack.database("gateway") as database:
        found: bool | None = await database.fetchval(
            "SELECT period_end > now() AND billed_period = period_start AND NOT EXISTS (SELECT FROM owed WHERE owed.owner = $1)"
            " FROM accounts JOIN subscriptions USING (owner) WHERE owner = $1",
            owner,
        )
    return bool(found)


async def is_exported(stack: RunningStack) -> bool:
    """Return whether each receiver of usage has all of it."""
    async with stack.database("gateway") as database:
        found: bool = await database.fetchval(
            "SELECT EXISTS (SELECT FROM usage_sinks) AND NOT EXISTS (SELECT FROM usage_sinks, usage_outbox WHERE number > sent_number)"
        )
    return found


async def read_money(stack: RunningStack, owners: Sequence[UserId]) -> Money:
    async with stack.database("gateway") as database:
        ids = list(owners)
        requests = await database.fetch("SELECT id, tenant_id AS owner, tokens_used FROM request_logs WHERE tenant_id = ANY($1)", ids)
        entries = await database.fetch("SELECT * FROM entries WHERE owner = ANY($1) ORDER BY id", ids)
        invoices = await database.fetch(
            "SELECT *, document::json ->> 'purpose' AS purpose, (document ->> 'netMinor')::int AS net FROM invoices"
        )
        customers = await database.fetch("SELECT owner, customer FROM subscriptions")
    of_kind, billed = _by_owner(entries, "kind", "account"), _by_owner(invoices, "purpose")
    costs = {row["transfer"]: row["amount_micro"] for owner in owners for row in of_kind[owner, "usage", "revenue"]}
    return Money(
        used={
            owner: {row["id"]: (row["tokens_used"], costs.get(row["id"], 0)) for row in requests if row["owner"] == owner}
            for owner in owners
        },
        top_ups={owner: [row["amount_micro"] for row in of_kind[owner, "top_up", "balance"]] for owner in owners},
        owed={owner: {row["transfer"]: row["amount_micro"] for row in of_kind[owner, "invoice", "balance"]} for owner in owners},
        overage={owner: {row["order_id"]: row["net"] for row in billed[owner, "overage"]} for owner in owners},
        fees={owner: [row["number"] for row in billed[owner, "plan"]] for owner in owners},
        customers=dict(map(tuple, customers)),
        documents={row["number"]: row["document"] for row in invoices},
    )


def _by_owner(rows: Sequence[asyncpg.Record], *columns: str) -> defaultdict[tuple[object, ...], list[asyncpg.Record]]:
    found = defaultdict[tuple[object, ...], list[asyncpg.Record]](list)
    for row in rows:
        found[row["owner"], *(row[column] for column in columns)].append(row)
    return found
