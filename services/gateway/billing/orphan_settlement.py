"""Settles requests whose gateway died.

The worker's receipt says how many tokens the dead gateway acknowledged, and so how many the caller got. Only these are billed. Without a
receipt, nothing is billed.

Only the last worker of a request is asked, and only its receipt counts. If that worker is gone, another one may have adopted its receipts,
which it signed. A worker that was replaced after a failure may still have a receipt for its part. Any other receipt is an attempt to bill
another worker's work, and earns a strike. The ledger bills at most what was reserved.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

import msgspec

from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import OpenReservation
from services.gateway.facts.request_record import RequestRow, ReservationState
from services.gateway.facts.upstream_prices import TargetSpending, UpstreamPrices
from shared import errors
from shared.api import inference
from shared.api.generation import Usage
from shared.api.inference import Receipt, SignedReceipt
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.identity import node_keys
from shared.protocol.directory import Directory
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.types import MicroCredits, NodeId, RequestId, RequestStatus, Role, UserId

ERROR_CODE = "gateway_lost"
#: A worker that doesn't respond in time is asked again in the next round.
DEADLINE_SECONDS = 2.0

#: Called for a worker that sends a receipt for a request that it did not run.
Strike = Callable[[NodeId], object]

_NO_PRICES = UpstreamPrices()
_decode = msgspec.msgpack.Decoder(Receipt).decode
_log = logs.get(part="receipts")


def build_row(
    reservation: OpenReservation,
    price: Price,
    receipt: Receipt | None,
    *,
    most_seconds: float,
    now: datetime,
    upstream: UpstreamPrices = _NO_PRICES,
) -> RequestRow | None:
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
    cost, covered = price.settle(Usage(prompt_tokens, completion_tokens), compute_seconds, reservation.held_tokens)
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
        cost_micro=cost if delivered else MicroCredits(0),
        covered_tokens=covered if delivered else 0,
        reservation=ReservationState.SETTLED if delivered else ReservationState.EXPIRED,
        route=reservation.route,
        provider=reservation.provider,
        attempts=len(reservation.workers),
        is_batch=reservation.is_batch,
        spending=_spending(reservation, upstream, Usage(prompt_tokens, completion_tokens)) if delivered else (),
    )


def _spending(reservation: OpenReservation, upstream: UpstreamPrices, usage: Usage) -> tuple[TargetSpending, ...]:
    micro = upstream.cost(reservation.model, usage)
    if reservation.provider is None or not micro:
        return ()
    place = ("", reservation.model) if reservation.route is None else (reservation.route.route, reservation.route.target)
    return (TargetSpending(*place, micro),)


def _within(claimed: int, most: int) -> int:
    return min(max(claimed, 0), most)


async def collect_receipts(
    rpc: RpcClient, directory: Directory, items: BackgroundItems, reservations: Sequence[OpenReservation], strike: Strike
) -> dict[RequestId, Receipt]:
    """Return the receipts of these requests; ``inference.RUNNING`` for a request that still runs. Never raises for a worker that
    doesn't respond or sends invalid receipts."""
    # Paused and draining workers keep their receipts, too.
    alive = {worker.node for worker in directory.entries(Role.WORKER) if worker.alive}
    last_workers = {reservation.request_id: reservation.workers[-1] for reservation in reservations if reservation.workers}
    workers = {reservation.request_id: reservation.workers for reservation in reservations}
    request_ids_by_worker: dict[NodeId, list[RequestId]] = {}
    for request_id, last in last_workers.items():
        # Any worker may have adopted the receipts of a worker that is gone.
        for node in (last,) if last in alive else alive:
            request_ids_by_worker.setdefault(node, []).append(request_id)
    found: dict[RequestId, Receipt] = {}

    async def ask(node: NodeId, request_ids: Sequence[RequestId]) -> None:
        for signed in await _read(rpc, node, request_ids):
            receipt = _decoded(signed)
            if receipt is not None and receipt.request_id in request_ids and _is_signed(signed, last_workers[receipt.request_id]):
                found[receipt.request_id] = receipt
            elif receipt is None or not any(_is_signed(signed, each) for each in workers.get(receipt.request_id, ())):
                _log.warning("worker sent a receipt for a request that it did not run", worker=node)
                strike(node)

    async with asyncio.TaskGroup() as tasks:
        for node, request_ids in request_ids_by_worker.items():
            tasks.create_task(items.attempt(ItemKind.RECEIPTS, node, ask(node, request_ids)))
    return found


async def _read(rpc: RpcClient, node: NodeId, request_ids: Sequence[RequestId]) -> Iterable[SignedReceipt]:
    found: list[SignedReceipt] = []
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for first in range(0, len(request_ids), inference.MAX_RECEIPTS):
                request = inference.ReadReceipts(tuple(request_ids[first : first + inference.MAX_RECEIPTS]))
                reply = await rpc.call(inference.read_receipts, request, to=node, deadline_seconds=DEADLINE_SECONDS)
                # Its own and an adopted one; one too many is enough to prove a worker wrong, so the rest isn't checked.
                found += reply.receipts[: 2 * len(request.request_ids) + 1]
    except (errors.AimeshError, TimeoutError):
        return found
    return found


def _is_signed(signed: SignedReceipt, signer: NodeId) -> bool:
    return node_keys.verify(signer, inference.RECEIPT_PURPOSE, signed.text, signed.signature)


def _decoded(signed: SignedReceipt) -> Receipt | None:
    """Return None for impossible values."""
    try:
        receipt = _decode(signed.text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return receipt if min(receipt.prompt_tokens, receipt.completion_tokens, receipt.credited_tokens) >= 0 else None
