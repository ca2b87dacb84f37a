"""Closes days of the ledger, and compares closed days with their entries. Every method may raise Unavailable."""

from datetime import UTC, datetime

from services.gateway.billing.checkpoints import CheckpointSigner, LedgerCheckpoint, LedgerDay
from shared.stores import database
from shared.telemetry import logs

#: Enough for a day of ten million entries on a cold disk.
_LONG_SECONDS = 1800.0
_NAMES = tuple(LedgerDay.__dataclass_fields__)
#: The columns that a day's entries alone determine.
_SUMS = tuple(name for name in _NAMES if name not in ("day", "balances_hash"))

_log = logs.get(part="checkpoints")


class CheckpointStore:
    def __init__(self, opened: database.Database, signer: CheckpointSigner) -> None:
        self._database = opened
        self._signer = signer

    async def close_days(self) -> None:
        """Write a checkpoint for each past day. Safe on any number of gateways at once: one of them does it."""
        while (closed := await self._close_day()) is not None:
            # The log is a second copy of the hash, out of reach of the database.
            day = closed.closed
            _log.info("ledger day closed", day=day.day.isoformat(), entries=day.entries, hash=closed.hash.hex())

    async def _close_day(self) -> LedgerCheckpoint | None:
        async with self._database.transaction(deadline_seconds=_LONG_SECONDS) as transaction:
            if not await transaction.value("lock_checkpoints"):
                return None
            day = await transaction.value("next_checkpoint_day")
            if day is None:
                return None
            await transaction.value("allow_long_statements")
            row = await transaction.row("sum_ledger_day", day)
            assert row is not None  # an aggregate always has one row
            await transaction.run("add_to_balances", day)
            balances_hash = await transaction.value("hash_balances")
            chain = await self.list_checkpoints(transaction)
            closed = LedgerDay(day=day, balances_hash=balances_hash, **{name: row[name] for name in _SUMS})
            checkpoint = self._signer.sign(closed, chain[-1] if chain else None, datetime.now(UTC))
            await transaction.run("add_checkpoint", *(getattr(closed, name) for name in _NAMES), checkpoint.hash, checkpoint.anchor)
        return checkpoint

    async def list_checkpoints(self, transaction: database.Transaction) -> list[LedgerCheckpoint]:
        return [
            LedgerCheckpoint(LedgerDay(**{name: row[name] for name in _NAMES}), row["hash"], row["anchor"])
            for row in await transaction.rows("list_checkpoints")
        ]

    def find_broken(self, chain: list[LedgerCheckpoint], balances_hash: bytes) -> tuple[str, ...]:
        """Describe each fault of the checkpoints themselves."""
        findings = self._signer.find_broken(chain)
        if chain and balances_hash != chain[-1].closed.balances_hash:
            return (*findings, "the owners' balances differ from the last checkpoint")
        return findings

    async def find_changed(self, transaction: database.Transaction, chain: list[LedgerCheckpoint]) -> tuple[str, ...]:
        """Describe each closed day whose entries differ from its checkpoint. Reads every entry."""
        findings = []
        for checkpoint in chain:
            row = await transaction.row("sum_ledger_day", checkpoint.closed.day)
            assert row is not None  # an aggregate always has one row
            if any(row[name] != getattr(checkpoint.closed, name) for name in _SUMS):
                findings.append(f"the entries of {checkpoint.closed.day.isoformat()} differ from its checkpoint")
        return tuple(findings)
