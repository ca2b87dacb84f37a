import pytest

from services.gateway.billing.ledger import RESERVE_SECONDS, SUSPENDED_SECONDS, TICK_SECONDS, LedgerUnavailable, SuspendDetector
from tests.services.gateway.billing.test_ledger import BOUNDS, LedgerHarness, harness, new_request
from tests.services.gateway.fakes import OWNER

__all__ = ["harness"]


@pytest.mark.parametrize(("late", "stopped"), [(0.0, False), (SUSPENDED_SECONDS / 2, False), (SUSPENDED_SECONDS, True), (60.0, True)])
def test_a_very_late_tick_counts_as_a_suspension(late: float, stopped: bool) -> None:
    now = 100.0
    stops = SuspendDetector(lambda: now)
    now += TICK_SECONDS + late
    assert stops.record_tick(100.0) == now
    assert stops.suspensions == stopped


async def test_a_deadline_that_passed_during_a_suspension_does_not_blame_postgresql(harness: LedgerHarness) -> None:
    harness.stops_for = RESERVE_SECONDS + 3
    assert (await harness.ledger.reserve(OWNER, new_request(), BOUNDS)).max_tokens == 1000
    # The suspension extends the deadline only once: PostgreSQL is still down.
    harness.stops_for, harness.failures = RESERVE_SECONDS + 3, 1000
    began = harness.now
    with pytest.raises(LedgerUnavailable, match="the ledger can't be reached"):
        await harness.ledger.reserve(OWNER, new_request(), BOUNDS)
    assert harness.now - began <= 2 * RESERVE_SECONDS + 3 + 1
