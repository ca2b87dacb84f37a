"""Settles requests whose gateway died. Pure.

The worker's receipt says how many tokens the dead gateway acknowledged, and so how many the caller got. Only these are billed. Without a
receipt, nothing is billed.
"""

from datetime import datetime

from services.gateway.billing.prices import Price
from services.gateway.billing.request_record import RequestRow, ReservationState
from services.gateway.billing.reservations import OpenReservation
from shared.api import inference
from shared.api.inference import Receipt
from shared.types import MicroCredits, RequestStatus, UserId

ERROR_CODE = "gateway_lost"


def end_of(reservation: OpenReservation, price: Price, receipt: Receipt | None, *, most_seconds: float, now: datetime) -> RequestRow | None:
    """Return the request's row; None if its worker may still run it."""
    if receipt is not None and receipt.ended == inference.RUNNING:
        if (now - reservation.created_at).total_seconds() < most_seconds:
            return None
        receipt = None
    # Bill at most what was reserved.
    prompt_tokens = _within(receipt.prompt_tokens, reservation.prompt_tokens) if receipt else 0
    # The gateways' own count covers earlier workers.
    sent = reservation.delivered_before + max(0, receipt.credited_tokens) if receipt else 0
    completion_tokens = _within(sent, reservation.completion_tokens)
    delivered = completion_tokens > 0
    ended_at = receipt.ended_at if receipt and receipt.ended_at else reservation.created_at
    seconds = min(max(0.0, (ended_at - reservation.created_at).total_seconds()), most_seconds)
    # The time of earlier workers is unknown, and waiting is free.
    worked = (ended_at - reservation.claimed_at).total_seconds() if reservation.claimed_at else 0.0
    compute_seconds = max(0.0, min(worked, receipt.seconds if receipt else 0.0))
    return RequestRow(
        id=reservation.request_id,
        # The user isn't known for an organization's request.
        user_id=UserId(reservation.owner),
        team_id=reservation.owner,
        api_key_id=reservation.key_id,
        prompt_hash=None,
        model_used=reservation.model,
        response_time_ms=round(1000 * seconds),
        prompt_tokens=prompt_tokens if delivered else 0,
        completion_tokens=completion_tokens,
        status=RequestStatus.ERROR,
        error_code=ERROR_CODE,
        created_at=reservation.created_at,
        cost_micro=price.cost(prompt_tokens, completion_tokens, compute_seconds) if delivered else MicroCredits(0),
        reservation=ReservationState.SETTLED if delivered else ReservationState.EXPIRED,
    )


def _within(claimed: int, most: int) -> int:
    return min(max(claimed, 0), most)
