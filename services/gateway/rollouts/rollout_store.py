"""Reads and writes the tables of rollouts. Every method may raise Unavailable."""

import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import msgspec

from services.gateway.rollouts.rollout_evidence import Progress, RequestOutcome
from services.gateway.rollouts.rollout_rules import Rollout
from shared import errors
from shared.api.configuration import MAX_POINTS, RolloutPlan, RolloutPoint, RolloutState
from shared.config_documents import Sticky
from shared.stores import database
from shared.stores.database import DatabaseRow, Transaction
from shared.types import UserId

#: Rows of outcomes in one look: each holds those of one batch of requests.
_MAX_ROWS = 5_000

#: Time, state, share, reason and author of a change.
RolloutChange = tuple[datetime, RolloutState, float, str, UserId | None]


class OpenRollouts:
    """The open rollouts in a transaction, which locks those that it takes. Lock the configuration after them."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction

    async def read_clock(self) -> datetime:
        """Return PostgreSQL's time, because the gateways' clocks may differ."""
        now: datetime = await self.transaction.value("read_clock")
        return now

    async def take(self, route: str) -> tuple[Rollout, datetime] | None:
        """Lock the open rollout of a route; return it with the time of the transaction."""
        row = await self.transaction.row("take_rollout", route)
        return None if row is None else (_rollout(row), row["now"])

    async def take_due(self, seconds: float) -> tuple[Rollout, datetime] | None:
        """Lock the rollout at which no gateway has looked for so long, except those at which one is looking now."""
        row = await self.transaction.row("take_due_rollout", seconds)
        return None if row is None else (_rollout(row), row["now"])

    async def take_outcomes(self, rollouts: Sequence[UUID]) -> dict[UUID, list[RequestOutcome]]:
        """Return the new outcomes of these rollouts. They are forgotten when the transaction ends."""
        found: defaultdict[UUID, list[RequestOutcome]] = defaultdict(list)
        for row in await self.transaction.rows("take_outcomes", rollouts, _MAX_ROWS):
            found[row["rollout"]] += _outcomes(row)
        return found

    async def add_late(self, late: Sequence[tuple[UUID, RequestOutcome]]) -> None:
        """Add running requests that have waited for too long."""
        columns = zip(
            *((rollout, one.is_candidate, one.tenant, one.user, one.began_at, one.waited_ms) for rollout, one in late), strict=True
        )
        await self.transaction.run("add_late_requests", *columns)

    async def save(self, *rollouts: Rollout) -> None:
        columns = zip(
            *((one.id, one.state.value, one.reason, msgspec.json.encode(one.progress).decode(), one.ended_at) for one in rollouts),
            strict=True,
        )
        await self.transaction.run("save_rollouts", *columns)

    async def add_event(self, rollout: Rollout, author: UserId | None = None) -> None:
        """Record the rollout's new state or share, and notify all gateways when the transaction ends."""
        await self.transaction.value("add_rollout_event", rollout.id, rollout.state.value, rollout.share, rollout.reason, author)

    async def add_point(self, rollout: UUID, point: RolloutPoint) -> None:
        await self.transaction.run("add_rollout_point", rollout, point.at, msgspec.json.encode(point).decode())

    async def start(self, rollout: Rollout) -> None:
        """Insert a rollout. The caller must hold the lock of the configuration, and know that the route has no open one."""
        plan = rollout.plan
        await self.transaction.run(
            "start_rollout",
            rollout.id,
            rollout.route,
            plan.candidate,
            plan.baseline,
            rollout.sticky.value,
            msgspec.json.encode(plan).decode(),
            msgspec.json.encode(rollout.progress).decode(),
            rollout.started_at,
        )

    async def forget(self) -> None:
        """Delete outcomes that came after their rollout had ended."""
        await self.transaction.run("forget_outcomes")


class RolloutStore:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    @asynccontextmanager
    async def change(self) -> AsyncIterator[OpenRollouts]:
        """Commit what the block changes, at its end."""
        try:
            async with self._database.transaction() as transaction:
                yield OpenRollouts(transaction)
        except database.Refusal as error:
            # Without the error's text, which may quote a row.
            raise errors.Unavailable(f"PostgreSQL refused to change a rollout: {type(error).__name__}") from error

    async def find(self, *, route: str | None = None, rollout: UUID | None = None, only_open: bool = False, limit: int) -> list[Rollout]:
        """Return rollouts, newest first."""
        return [_rollout(row) for row in await self._database.rows("list_rollouts", route, rollout, only_open, limit)]

    async def events(self, rollout: UUID) -> list[RolloutChange]:
        rows = await self._database.rows("list_rollout_events", rollout)
        return [(row["at"], RolloutState(row["state"]), row["share"], row["reason"], row["author"]) for row in rows]

    async def points(self, rollout: UUID) -> list[RolloutPoint]:
        """Return what was known at times spread over the rollout, oldest first."""
        rows = await self._database.rows("list_rollout_points", rollout, MAX_POINTS)
        return [msgspec.json.decode(row["body"], type=RolloutPoint) for row in rows]

    async def recent_states(self) -> dict[str, RolloutState]:
        """Return the state of each route's last rollout that is open or has ended within an hour."""
        return {row["route"]: RolloutState(row["state"]) for row in await self._database.rows("list_recent_rollouts")}

    async def first_token_p95(self, route: str, target: str) -> tuple[int, int | None]:
        """Return the number of a target's last answers of a day, and within how many milliseconds 95 % of them began."""
        row = await self._database.row("find_first_token_p95", route, target, deadline_seconds=20)
        return (0, None) if row is None else (row["answers"], row["p95_ms"])


def _rollout(row: DatabaseRow) -> Rollout:
    return Rollout(
        id=row["id"],
        route=row["route"],
        sticky=Sticky(row["sticky"]),
        plan=msgspec.json.decode(row["plan"], type=RolloutPlan),
        state=RolloutState(row["state"]),
        progress=msgspec.json.decode(row["progress"], type=Progress),
        reason=row["reason"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )


#: In the order of an outcome's fields, without ``is_candidate`` and ``has_ended``.
_ARRAYS = (
    *("tenants", "users", "began_at"),
    *("failed", "first_token_ms", "waited_ms", "writing_ms", "tokens", "completion_tokens", "upstream_micro", "ratings"),
)


def _outcomes(row: DatabaseRow) -> Iterator[RequestOutcome]:
    tenants, users, began_at, *others = (row[column] for column in _ARRAYS)
    is_candidate, has_ended = itertools.repeat(row["is_candidate"]), itertools.repeat(row["are_ended"])
    return itertools.starmap(RequestOutcome, zip(is_candidate, tenants, users, began_at, has_ended, *others, strict=False))
