from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.gateway.billing.orphan_settlement import build_row
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import OpenReservation
from services.gateway.facts.request_record import ReservationState
from shared.api.inference import RUNNING, Receipt
from shared.api.ledger import MICRO, ModelPrice
from shared.types import MicroCredits, ModelName, RequestId, UserId

ID = RequestId(UUID(int=7))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PRICE = Price(3, ModelPrice(None, MicroCredits(MICRO), MicroCredits(2 * MICRO), compute_second_micro=MicroCredits(5)))
OPEN = OpenReservation(
    ID, UserId(UUID(int=1)), None, ModelName("m"), 3, prompt_tokens=100, completion_tokens=50,
    created_at=NOW - timedelta(minutes=3), claimed_at=NOW - timedelta(minutes=3),
)  # fmt: skip


def make_receipt(prompt_tokens: int, completion_tokens: int, seconds: float, before: int = 0) -> Receipt:
    ended_at = OPEN.created_at + timedelta(seconds=seconds)
    counts = (prompt_tokens, before, 10 * completion_tokens)
    return Receipt(ID, *counts, "stop", ended_at, max(0.0, seconds), credited_tokens=completion_tokens)


@pytest.mark.parametrize(
    ("receipt", "cost", "state", "counts"),
    [
        pytest.param(None, 0, ReservationState.EXPIRED, (0, 0), id="no receipt: free"),
        pytest.param(make_receipt(10, 0, 1.0), 0, ReservationState.EXPIRED, (0, 0), id="a prompt without an answer is free"),
        pytest.param(make_receipt(10, 20, 2.0), 10 + 40 + 10, ReservationState.SETTLED, (10, 20), id="tokens with credit are paid"),
        pytest.param(make_receipt(10**9, 10**9, -5.0), 100 + 100, ReservationState.SETTLED, (100, 50), id="at most what was reserved"),
        pytest.param(
            make_receipt(10, 5, 0.0, before=10**6), 10 + 10, ReservationState.SETTLED, (10, 5), id="claims about others are ignored"
        ),
        pytest.param(make_receipt(-10, -20, 1.0), 0, ReservationState.EXPIRED, (0, 0), id="negative numbers"),
    ],
)
def test_how_an_orphan_is_settled(receipt: Receipt | None, cost: int, state: ReservationState, counts: tuple[int, int]) -> None:
    row = build_row(OPEN, PRICE, receipt, most_seconds=3600, now=NOW)
    assert row is not None
    assert (row.cost_micro, row.reservation, (row.prompt_tokens, row.completion_tokens)) == (cost, state, counts)
    assert (row.id, row.user_id, row.created_at, row.error_code) == (OPEN.request_id, OPEN.owner, OPEN.created_at, "gateway_lost")


def test_tokens_of_earlier_workers_are_billed_by_the_gateways_own_count() -> None:
    row = build_row(replace(OPEN, delivered_before=15), PRICE, make_receipt(10, 5, 0.0, before=40), most_seconds=3600, now=NOW)
    assert row is not None
    assert (row.cost_micro, row.completion_tokens) == (10 + 40, 20)


@pytest.mark.parametrize(
    ("queued", "told_seconds", "paid_seconds"),
    [(0.0, 9.0, 9.0), (4.0, 9.0, 6.0), (4.0, 2.0, 2.0), (20.0, 5.0, 0.0), (None, 5.0, 0.0)],
    ids=["at once", "no longer than since its claim", "nor than it says", "nor less than nothing", "claimed by nobody"],
)
def test_seconds_count_from_the_claim(queued: float | None, told_seconds: float, paid_seconds: float) -> None:
    claimed_at = None if queued is None else OPEN.created_at + timedelta(seconds=queued)
    receipt = Receipt(ID, 0, 0, 1, "stop", OPEN.created_at + timedelta(seconds=10), told_seconds, credited_tokens=1)
    row = build_row(replace(OPEN, claimed_at=claimed_at), PRICE, receipt, most_seconds=3600, now=NOW)
    assert row is not None
    assert (row.cost_micro, row.response_time_ms) == (2 + 5 * paid_seconds, 10_000)


def test_a_running_orphan_is_checked_later_but_not_forever() -> None:
    receipt = Receipt(ID, 10, 0, 20, RUNNING)
    assert build_row(OPEN, PRICE, receipt, most_seconds=3600, now=NOW) is None
    row = build_row(OPEN, PRICE, receipt, most_seconds=3600, now=NOW + timedelta(hours=1))
    assert row is not None
    assert (row.cost_micro, row.reservation) == (0, ReservationState.EXPIRED)
