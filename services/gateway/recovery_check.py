"""Checks a restored database: `python -m services.gateway.recovery_check` reads DATABASE_URL and prints JSON.

It verifies every entry of the ledger, and each closed day against its checkpoint. Only a gateway, which has PROMPT_HASH_SECRET, can also
verify the signatures of checkpoints.
"""

import sys
from pathlib import Path

from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from shared.stores import recovery_check
from shared.stores.recovery_check import RecoveryCheck

#: Every gateway of a restored database is gone, so a reservation without a lease is no fault.
_GRACE_SECONDS = 100 * 365 * 86_400.0


async def check(url: str) -> RecoveryCheck:
    facts = await recovery_check.read_facts(url, "gateway", Path(__file__).parent)
    async with store.opened(url) as database:
        report = await LedgerStore(database).verify(grace_seconds=_GRACE_SECONDS, full=True)
    return RecoveryCheck(
        facts=facts,
        failures=(*facts.failures, *(f"ledger: {finding}" for finding in report.findings)),
        ledger_entries=report.entries,
        ledger_micro=report.sum_micro,
    )


if __name__ == "__main__":
    sys.exit(recovery_check.run(check))
