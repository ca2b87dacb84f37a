"""Closed days of the ledger, which verification relies on; on a real PostgreSQL with row-level security in force."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.gateway import store as stores
from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner
from services.gateway.billing.ledger_store import LedgerStore
from shared import audit_anchors
from shared.api.ledger import LedgerReport
from shared.audit_anchors import Anchor, Anchors
from shared.stores import database
from shared.types import MeshName, NodeId

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
DAYS = 4
OWNERS = [UUID(int=1), UUID(int=2)]
SECRET = "the secret of all gateways"


class ClosedLedger:
    """Four days of top-ups and today's, and helpers to tamper with them."""

    def __init__(self, opened: database.Database, connection: asyncpg.Connection) -> None:
        self.opened, self.connection = opened, connection
        self.checkpoints = self.store_of(SECRET)

    def store_of(self, secret: str) -> CheckpointStore:
        return CheckpointStore(self.opened, CheckpointSigner(secret, MeshName("home")))

    async def top_up(self, at: datetime, owner: UUID, micro: int) -> None:
        transfer = uuid4()
        for account, amount in (("balance", micro), ("payments", -micro)):
            await self.connection.execute(
                "INSERT INTO entries (transfer, kind, account, owner, amount_micro, note, at)"
                " VALUES ($1, 'top_up', $2, $3, $4, 'a | b', $5)",
                transfer, account, owner, amount, at,
            )  # fmt: skip
        await self.connection.execute(
            "INSERT INTO accounts AS a (owner, balance_micro) VALUES ($1, $2)"
            " ON CONFLICT (owner) DO UPDATE SET balance_micro = a.balance_micro + $2",
            owner, micro,
        )  # fmt: skip

    async def verify(self, *, full: bool = False, secret: str = SECRET) -> LedgerReport:
        return await LedgerStore(self.opened, self.store_of(secret)).verify(grace_seconds=60, full=full)

    async def closed(self) -> list[date]:
        return [day for (day,) in await self.connection.fetch("SELECT day FROM ledger_checkpoints ORDER BY day")]

    async def tamper(self, statement: str) -> None:
        """Change entries as the owner of the tables can."""
        await self.connection.execute("ALTER TABLE entries DISABLE TRIGGER USER")
        await self.connection.execute(statement)


@pytest.fixture
async def books(plain_url: str) -> AsyncIterator[ClosedLedger]:
    async with stores.opened(plain_url) as opened:
        connection = await asyncpg.connect(plain_url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        closed_ledger = ClosedLedger(opened, connection)
        for days in range(DAYS, 0, -1):
            for micro, owner in enumerate(OWNERS, start=10 * days):
                await closed_ledger.top_up(TODAY - timedelta(days=days) + timedelta(hours=23), owner, micro)
        await closed_ledger.top_up(datetime.now(UTC), OWNERS[0], 7)
        # At any time of day, the day before yesterday ended long ago.
        await closed_ledger.checkpoints.close_days()
        yield closed_ledger
        await connection.close()


async def test_each_past_day_is_closed_once_by_any_number_of_gateways(books: ClosedLedger) -> None:
    closed = await books.closed()
    assert closed[: DAYS - 1] == [(TODAY - timedelta(days=days)).date() for days in range(DAYS, 1, -1)]
    assert TODAY.date() not in closed
    await books.connection.execute("DELETE FROM ledger_checkpoints")
    await books.connection.execute("DELETE FROM ledger_balances")
    await asyncio.gather(*(books.checkpoints.close_days() for _ in range(4)))
    assert await books.closed() == closed
    report = await books.verify()
    assert (report.findings, report.entries, report.closed_until) == ((), 2 * (2 * DAYS + 1), closed[-1])


async def test_verify_reads_the_open_day_and_full_reads_everything(books: ClosedLedger) -> None:
    """A missing entry of a closed day shows whether a verification reads that day."""
    first = (await books.closed())[0]
    await books.tamper("DELETE FROM entries WHERE at = (SELECT min(at) FROM entries)")
    assert (await books.verify()).findings == ()
    report = await books.verify(full=True)
    assert (report.broken_checkpoints, report.drift_micro, report.closed_until) == (1, 40 + 41, None)
    assert report.findings[-1] == f"the entries of {first.isoformat()} differ from its checkpoint"


async def test_a_changed_note_or_time_in_a_closed_entry_is_found(books: ClosedLedger) -> None:
    await books.tamper("UPDATE entries SET note = 'another' WHERE id = (SELECT min(id) FROM entries)")
    assert len((await books.verify(full=True)).findings) == 1


async def test_todays_errors_are_found_without_reading_the_past(books: ClosedLedger) -> None:
    assert (await books.verify()).findings == ()
    await books.connection.execute("UPDATE accounts SET balance_micro = balance_micro + 3 WHERE owner = $1", OWNERS[1])
    assert (await books.verify()).drift_micro == 3
    await books.connection.execute(
        "INSERT INTO entries (transfer, kind, account, owner, amount_micro) VALUES (gen_random_uuid(), 'top_up', 'balance', $1, 3)",
        OWNERS[1],
    )
    report = await books.verify()
    assert (report.drift_micro, report.sum_micro) == (0, 3)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        pytest.param("UPDATE ledger_balances SET balance_micro = balance_micro + 1", "the owners' balances", id="sums"),
        pytest.param("UPDATE ledger_checkpoints SET payments_micro = 0", "was changed after it was written", id="a checkpoint"),
        pytest.param("DELETE FROM ledger_checkpoints WHERE day = $1", "checkpoints are missing", id="a deleted checkpoint"),
        pytest.param("UPDATE ledger_checkpoints SET anchor = '{}'", "has no signature", id="no signature"),
    ],
)
async def test_changed_checkpoints_are_found(books: ClosedLedger, statement: str, finding: str) -> None:
    middle = (await books.closed())[1]
    await books.connection.execute(statement, *([middle] if "$1" in statement else []))
    report = await books.verify()
    assert any(finding in one for one in report.findings), report.findings
    assert report.broken_checkpoints > 0


async def test_a_checkpoint_signed_with_another_secret_is_rejected(books: ClosedLedger) -> None:
    report = await books.verify(secret="what somebody without the secret has")
    assert report.broken_checkpoints == len(await books.closed())
    assert report.findings[0].endswith("is not signed by this mesh; was PROMPT_HASH_SECRET changed?")


async def test_a_payment_without_an_entry_is_found_in_the_open_day(books: ClosedLedger) -> None:
    await books.connection.execute(
        "INSERT INTO prices (input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro) VALUES (0, 0, 0, 0)"
    )
    await books.connection.execute(
        "INSERT INTO reservations (request_id, owner, model, price_id, state, reserved_micro, settled_micro, prompt_tokens,"
        " completion_tokens, gateway, lease_until, ended_at)"
        " SELECT smallest_id(now()), $1, 'm', 1, 'settled', 5, 5, 1, 1, 'g', now(), now()",
        OWNERS[0],
    )
    assert (await books.verify()).findings == ("1 reservations differ from their entries",)


async def test_a_signature_is_verified_once(books: ClosedLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[Anchor] = []
    check = audit_anchors.check

    def count(anchors: Iterable[Anchor], keys: Collection[NodeId]) -> Anchors:
        verified.extend(batch := list(anchors))
        return check(batch, keys)

    monkeypatch.setattr(audit_anchors, "check", count)
    ledger = LedgerStore(books.opened, books.store_of(SECRET))
    for _ in range(3):
        assert (await ledger.verify(grace_seconds=60)).findings == ()
    assert len(verified) == len(await books.closed())
    await books.connection.execute('UPDATE ledger_checkpoints SET anchor = replace(anchor, \'"signature":"\', \'"signature":"00\')')
    for _ in range(2):
        assert (await ledger.verify(grace_seconds=60)).broken_checkpoints == len(await books.closed())
