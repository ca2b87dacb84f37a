"""Checks the history, the tables and the logs after a fault."""

from shared.types import RequestId
from tests.chaos import oracle
from tests.chaos.load import History
from tests.chaos.oracle import Fault, Row
from tests.people import Person
from tests.stacks import RunningStack, until


async def judge(stack: RunningStack, person: Person, history: History, fault: Fault) -> None:
    """Fail with every violation. The person must have sent only the requests of the history, and probes."""
    rows, usage = await _written(stack, person, history, fault)
    found = oracle.violations(history.attempts, fault, rows, deadline_seconds=history.deadline_seconds)
    assert not found, f"{len(found)} violations of {fault}: " + "\n".join(found[:20])
    assert usage == oracle.usage_of(rows)
    for name in (*await stack.programs(), "supervisor"):
        before, traceback, after = stack.log(name).partition("Traceback")
        assert not traceback, f"{name} has a traceback in its log: {before[-500:]}{traceback}{after[:4000]}"


async def _written(stack: RunningStack, person: Person, history: History, fault: Fault) -> tuple[dict[RequestId, Row], tuple[int, int]]:
    """Return all rows of the person and their usage, from one snapshot in which every success that must have a row has one."""
    successes = [attempt for attempt in history.attempts if attempt.succeeded]
    wanted = {one.request_id for one in successes if not fault.loses_rows or one.ended < fault.began or one.began >= fault.over}

    async def all_written() -> tuple[dict[RequestId, Row], tuple[int, int]] | None:
        # One snapshot, because rows of interrupted requests may arrive at any moment.
        async with stack.database("gateway") as database, database.transaction(isolation="repeatable_read", readonly=True):
            rows = await database.fetch("SELECT * FROM request_logs WHERE user_id = $1", person.id)
            sums = await database.fetchrow(
                "SELECT coalesce(sum(request_count), 0)::int, coalesce(sum(tokens_used), 0)::int FROM usage_stats WHERE user_id = $1",
                person.id,
            )
        assert sums is not None
        found = {RequestId(row["id"]): Row(row["status"], row["prompt_tokens"], row["completion_tokens"]) for row in rows}
        return (found, (sums[0], sums[1])) if wanted <= found.keys() else None

    return await until(all_written, seconds=60, what="every success has its row")


async def check_the_books(stack: RunningStack) -> None:
    """Check that nothing is reserved, nothing drifts, and the audit log is an unbroken chain."""

    async def rests() -> bool:
        async with stack.database("gateway") as database:
            return await database.fetchval("SELECT count(*) FROM reservations WHERE state = 'reserved'") == 0

    await until(rests, seconds=30, what="no reservation is open")
    ledger = (await stack.aicli("admin", "ledger", "verify", "--json")).json()
    assert {name: ledger[name] for name in ("drift_micro", "sum_micro", "reserved_drift_micro", "overdue")} == {
        "drift_micro": 0, "sum_micro": 0, "reserved_drift_micro": 0, "overdue": 0,
    }  # fmt: skip
    audit = await stack.aicli("admin", "audit", "verify")
    assert audit.status == 0, audit.out + audit.err
