"""Reads and writes the ledger's tables: prices, accounts, reservations and entries. No other module does, except that ``store`` settles
a reservation together with its request's row."""

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from operator import attrgetter

from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner, LedgerCheckpoint
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import (
    NO_PLAN,
    ExtendedHold,
    GrantedReservation,
    HoldExtension,
    InsufficientCredits,
    OpenReservation,
    ReservationRequest,
    Spending,
    WorkerClaim,
)
from services.gateway.facts import request_record
from services.gateway.facts.request_record import RouteUse
from shared import errors
from shared.api.auth import Budget
from shared.api.ledger import Account, Allowance, LedgerReport, ModelPrice
from shared.stores import database
from shared.types import KeyId, MeshName, MicroCredits, NodeId, RequestId, TenantId

_VERIFY_SECONDS, _FULL_VERIFY_SECONDS = 30.0, 1800.0
#: The contract's limit.
_MAX_FINDINGS = 20


class LedgerStore:
    """Access to the ledger. Every method may raise Unavailable."""

    def __init__(self, opened: database.Database, checkpoints: CheckpointStore | None = None, *, exports_usage: bool = False) -> None:
        """The default for ``checkpoints`` compares closed days without verifying signatures, for which it has no secret."""
        self._database, self._exports_usage = opened, exports_usage
        self._checkpoints = checkpoints or CheckpointStore(opened, CheckpointSigner(None, MeshName("")))

    async def reserve(
        self, requests: Sequence[ReservationRequest], *, gateway: NodeId, lease_seconds: float
    ) -> list[GrantedReservation | InsufficientCredits]:
        """Reserve in one transaction; answer in order. An existing reservation is kept and reported as repeated."""
        columns = zip(*(_columns(reservation) for reservation in requests), strict=True)
        holds = [(each.request_id, hold.route, hold.target, hold.micro, hold.ceiling_micro) for each in requests for hold in each.holds]
        held = zip(*holds, strict=True) if holds else ((),) * 5
        values = (*columns, gateway, lease_seconds, *held)
        if jobs := {each.request_id: each.job for each in requests if each.job is not None}:
            async with self._database.transaction(deadline_seconds=2) as transaction:
                rows = await transaction.rows("reserve", *values)
                await transaction.run("mark_reservations", list(jobs), list(jobs.values()))
        else:
            rows = await self._database.rows("reserve", *values, deadline_seconds=2)
        answers = {row["request_id"]: _answer(row) for row in rows}
        return [answers[reservation.request_id] for reservation in requests]

    async def extend_holds(self, extensions: Sequence[HoldExtension]) -> list[ExtendedHold]:
        """Raise what running requests hold, in one transaction; answer in order. Safe to repeat."""
        columns = zip(*(_extension_columns(extension) for extension in extensions), strict=True)
        rows = await self._database.rows("extend_holds", *columns, deadline_seconds=2)
        answers = {row["request_id"]: ExtendedHold(row["granted_tokens"], row["held_tokens"] or 0, row["is_over_ceiling"]) for row in rows}
        return [answers.get(extension.request_id, ExtendedHold(None)) for extension in extensions]

    async def extend_leases(self, requests: Sequence[RequestId], seconds: float) -> None:
        await self._database.run("extend_leases", list(requests), seconds)

    async def list_overdue(self, *, grace_seconds: float, most: int) -> tuple[OpenReservation, ...]:
        rows = await self._database.rows("list_overdue", grace_seconds, most)
        return tuple(_open_reservation(row) for row in rows)

    async def drop_lost_attempts(self, *, grace_seconds: float, most: int) -> None:
        """End overdue reservations of jobs whose lines belong to other attempts by now. Nothing is paid for them."""
        await self._database.rows("drop_lost_attempts", grace_seconds, most)

    async def record_claims(self, claims: Sequence[WorkerClaim]) -> set[RequestId]:
        """Record at most one claim per request; return the recorded ones. The others are locked right now, or not open."""
        columns = zip(
            *((*_CLAIM(claim), *request_record.route_columns(claim.route), claim.provider, claim.is_batch) for claim in claims), strict=True
        )
        return {RequestId(row["request_id"]) for row in await self._database.rows("record_claims", *columns, deadline_seconds=2)}

    async def read_account(self, owner: TenantId, spending: Spending) -> Account:
        async with self._database.bound(owner) as transaction:
            every = spending.owner_budget and spending.owner_budget.every
            row = await transaction.row("read_account", owner, spending.included_tokens, spending.has_plan, every)
        assert row is not None  # the query creates a missing account
        allowance = None
        if spending.has_plan:
            # Who changed to a smaller plan keeps the tokens of this period, and who has paid for fewer has fewer.
            included = spending.included_tokens if row["paid_tokens"] is None else 0
            included = None if included is None else max(included, row["granted_tokens"])
            used = row["granted_tokens"] - row["allowance_tokens"]
            allowance = Allowance(included, used, row["held_tokens"], row["period_end"].astimezone(UTC))
        return Account(
            row["balance_micro"], row["reserved_micro"], spending.overage_micro, allowance, spending.owner_budget, row["spent_micro"]
        )

    async def top_up(self, transfer_id: RequestId, owner: TenantId, amount: MicroCredits, note: str, spending: Spending) -> bool:
        """As ``move_credits``, also for two calls at once."""

        async def move() -> bool:
            async with self._database.transaction() as transaction:
                return await move_credits(transaction, transfer_id, owner, amount, note=note, spending=spending)

        try:
            return await move()
        except database.UniqueViolation:
            return await move()

    async def revert(self, request_id: RequestId, note: str) -> TenantId | None:
        """Refund a request; return its owner, or None if it cost nothing. Raises AlreadyReverted."""
        try:
            owner: TenantId | None = await self._database.value("revert", request_id, note, self._exports_usage)
        except database.UniqueViolation as error:
            raise AlreadyReverted from error
        if owner is not None:
            await self._database.written(owner)
        return owner

    async def read_key_spending(self, owner: TenantId, key: KeyId) -> tuple[MicroCredits, MicroCredits]:
        """Return what the key has spent, and what its running requests reserve."""
        async with self._database.bound(owner) as transaction:
            row = await transaction.row("read_key_spending", key)
        return (MicroCredits(0), MicroCredits(0)) if row is None else (row["spent_micro"], row["reserved_micro"])

    async def read_clock(self) -> datetime:
        now: datetime = await self._database.value("read_clock")
        return now

    async def list_prices(self, *, history: bool = False) -> tuple[Price, ...]:
        return tuple(_price(row) for row in await self._database.rows("list_price_history" if history else "list_prices"))

    async def find_price(self, number: int) -> Price | None:
        row = await self._database.row("find_price", number)
        return None if row is None else _price(row)

    async def add_price(self, price: ModelPrice) -> None:
        await self._database.run(
            "add_price",
            *(price.model, price.input_micro_per_million, price.output_micro_per_million, price.request_micro, price.compute_second_micro),
            *(price.allowance_weight, price.batch_percent),
        )

    async def ensure_default_price(self, input_micro_per_million: int, output_micro_per_million: int) -> None:
        """Insert the default price if missing. Doesn't write otherwise, so a gateway can start with a read-only PostgreSQL."""
        if any(found.price.model is None for found in await self.list_prices()):
            return
        await self._database.run("ensure_default_price", input_micro_per_million, output_micro_per_million)

    async def verify(self, *, grace_seconds: float, full: bool = False) -> LedgerReport:
        """Sum up the entries since the last checkpoint; with ``full``, all of them, and compare each closed day with its checkpoint."""
        seconds = _FULL_VERIFY_SECONDS if full else _VERIFY_SECONDS
        async with self._database.transaction(deadline_seconds=seconds) as transaction:
            await transaction.value("plan_each_time")
            if full:
                await transaction.value("allow_long_statements")
            row, chain = await self._sum_up(transaction, grace_seconds, full=full)
            broken = self._checkpoints.find_broken(chain, row["balances_hash"])
            if full:
                broken += await self._checkpoints.find_changed(transaction, chain)
        return _report(row, () if full else chain, broken)

    async def _sum_up(
        self, transaction: database.Transaction, grace_seconds: float, *, full: bool
    ) -> tuple[database.DatabaseRow, list[LedgerCheckpoint]]:
        """Sum up, again if another gateway closed a day between the two statements."""
        while True:
            chain = await self._checkpoints.list_checkpoints(transaction)
            last = chain[-1].closed.day if chain else None
            since = None if last is None or full else datetime.combine(last + timedelta(days=1), time(), UTC)
            row = await transaction.row("verify_ledger", grace_seconds, since)
            assert row is not None  # one row of sums
            if row["last_day"] == last:
                return row, chain


def _report(row: database.DatabaseRow, chain: Sequence[LedgerCheckpoint], broken: tuple[str, ...]) -> LedgerReport:
    findings = {
        "accounts differ from the sum of their entries by {} micro-credits": row["drift_micro"],
        "all entries sum up to {} micro-credits instead of 0": row["sum_micro"],
        "accounts differ from the sum of their entries by {} tokens": row["drift_tokens"],
        "all entries sum up to {} tokens instead of 0": row["sum_tokens"],
        "the tokens that accounts hold differ from the open reservations by {}": row["held_drift_tokens"],
        "the reservations on accounts differ from the open reservations by {} micro-credits": row["account_reserved_drift_micro"],
        "the reservations on keys differ from their open reservations by {} micro-credits": row["key_reserved_drift_micro"],
        "the reservations on targets differ from the open reservations by {} micro-credits": row["target_reserved_drift_micro"],
        "the spending of targets differs from the requests' upstream costs by {} micro-credits": row["upstream_drift_micro"],
        "{} reservations differ from their entries": row["wrong_settles"],
        "{} open reservations belong to lost gateways": row["overdue"],
    }
    return LedgerReport(
        drift_micro=row["drift_micro"],
        sum_micro=row["sum_micro"],
        reserved_drift_micro=row["account_reserved_drift_micro"] + row["key_reserved_drift_micro"] + row["target_reserved_drift_micro"],
        overdue=row["overdue"],
        accounts=row["accounts"],
        entries=row["entries"] + sum(checkpoint.closed.entries for checkpoint in chain),
        open_reservations=row["open_reservations"],
        findings=(*(text.format(number) for text, number in findings.items() if number), *broken)[:_MAX_FINDINGS],
        broken_checkpoints=len(broken),
        closed_until=chain[-1].closed.day if chain else None,
        drift_tokens=row["drift_tokens"] + abs(row["sum_tokens"]) + row["held_drift_tokens"],
    )


async def move_credits(
    transaction: database.Transaction,
    transfer: RequestId,
    owner: TenantId,
    amount: MicroCredits,
    *,
    note: str,
    spending: Spending = NO_PLAN,
) -> bool:
    """Return False if this transfer was already made: a restored database has those of its recovery log. Raises IdempotencyConflict if it
    has another owner or amount."""
    is_same = await transaction.value("is_same_transfer", transfer, owner, amount)
    if is_same is None:
        await transaction.run("top_up", transfer, owner, amount, note, spending.included_tokens, spending.has_plan)
    elif not is_same:
        raise errors.IdempotencyConflict(
            f"the transfer {transfer} was made for another account or amount", hint="use a new id for a new transfer"
        )
    return is_same is None


class AlreadyReverted(Exception):
    """The request was already refunded."""


_RESERVATION = attrgetter(
    *("request_id", "owner", "key_id", "model", "price.id", "prompt_tokens", "max_tokens", "least_tokens", "answers"),
)
_EXTENSION = attrgetter("request_id", "owner", "max_tokens", "least_more", "answers")
_PRICES = attrgetter("input_micro_per_million", "output_micro_per_million")
_PLAN = attrgetter("included_tokens", "overage_micro", "has_plan")
_CLAIM = attrgetter("request_id", "worker", "delivered_before", "model", "price_id")


def _columns(request: ReservationRequest) -> tuple[object, ...]:
    spending, price = request.spending, request.price
    prices = (price.fixed(request.seconds), *_PRICES(price.price), request.allowance_weight)
    return (*_RESERVATION(request), *prices, *_PLAN(spending), *_budget(spending.key_budget), *_budget(spending.owner_budget))


def _budget(budget: Budget | None) -> tuple[MicroCredits | None, str | None]:
    return (None, None) if budget is None else (budget.micro, budget.every)


def _extension_columns(extension: HoldExtension) -> tuple[object, ...]:
    target, spending, price = extension.target, extension.spending, extension.price.price
    hold = (None, None, None) if target is None else (target.target, target.micro, target.ceiling_micro)
    budgets = (_budget(spending.key_budget)[0], _budget(spending.owner_budget)[0])
    return (*_EXTENSION(extension), *_PRICES(price), price.allowance_weight, *_PLAN(spending), *budgets, *hold)


def _open_reservation(row: database.DatabaseRow) -> OpenReservation:
    used = None if row["route"] is None else RouteUse(row["route"], row["route_version"], row["variant"], row["target"])
    names = OpenReservation.__dataclass_fields__.keys() - {"route"}
    return OpenReservation(**{name: row[name] for name in names} | {"workers": tuple(row["workers"])}, route=used)


def _answer(row: database.DatabaseRow) -> GrantedReservation | InsufficientCredits:
    if row["granted_tokens"] is None:
        return InsufficientCredits(row["room_micro"], row["limited_by"])
    return GrantedReservation(row["granted_tokens"], row["held_tokens"], row["is_repeated"], frozenset(row["over_ceiling"]))


def _price(row: database.DatabaseRow) -> Price:
    price = ModelPrice(
        model=row["model"],
        input_micro_per_million=row["input_micro_per_million"],
        output_micro_per_million=row["output_micro_per_million"],
        request_micro=row["request_micro"],
        compute_second_micro=row["compute_second_micro"],
        allowance_weight=row["allowance_weight"],
        since=row["since"].astimezone(UTC),
        batch_percent=row["batch_percent"],
    )
    return Price(row["id"], price)
