"""Reads batches and their lines from PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from features.jobs.contract import JobState
from shared.types import UserId
from tests.stacks import RunningStack


@dataclass(frozen=True, slots=True)
class Line:
    """A line that has no end yet."""

    state: str
    runner: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    id: str
    state: JobState
    runner: str | None
    #: Its runner works on it now.
    is_taken: bool
    has_ended: bool
    done: int
    failed: int
    input_tokens: int
    output_tokens: int
    cost_micro: int
    #: All until it has ended, and then none.
    lines: tuple[Line, ...] = ()

    @property
    def running(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.state == "running")


async def read_batches(stack: RunningStack, owners: Sequence[UserId]) -> list[Batch]:
    """Read the batch of each owner."""
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT *, lease_until > now() AS is_taken FROM jobs WHERE tenant_id = ANY($1)", list(owners))
        lines = await database.fetch("SELECT job_id, state, runner FROM job_lines WHERE job_id = ANY($1)", [row["id"] for row in rows])
    by_owner = {row["tenant_id"]: row for row in rows}
    return [
        _batch(by_owner[owner], [Line(line["state"], line["runner"]) for line in lines if line["job_id"] == by_owner[owner]["id"]])
        for owner in owners
    ]


def _batch(row: asyncpg.Record, lines: Sequence[Line]) -> Batch:
    return Batch(
        str(row["id"]), JobState(row["state"]), row["runner"], row["is_taken"], row["ended_at"] is not None, row["done"], row["failed"],
        row["input_tokens"], row["output_tokens"], row["cost_micro"], tuple(lines),
    )  # fmt: skip


@asynccontextmanager
async def no_files_change(stack: RunningStack) -> AsyncIterator[None]:
    """Hold up everything that would write a file, during the block."""
    async with stack.database("gateway") as database, database.transaction():
        await database.execute("LOCK TABLE files IN SHARE ROW EXCLUSIVE MODE")
        yield
