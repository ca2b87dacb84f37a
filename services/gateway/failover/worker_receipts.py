"""What workers say they did for requests whose gateway died.

Only the worker that claimed a request last is asked for it, and only its word counts. A worker that failed and was replaced may still
have a receipt of its part; every other receipt is an attempt to bill somebody else's work, and a strike. The ledger bounds what it bills
by what was reserved.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from services.gateway import node_interface
from services.gateway.billing.reservations import OpenReservation
from shared import errors
from shared.api import inference
from shared.api.inference import Receipt, SignedReceipt
from shared.identity import node_keys
from shared.telemetry import logs
from shared.types import NodeId, RequestId, Role

#: A worker that does not answer by then is asked again with the next look at what is open.
DEADLINE_SECONDS = 2.0

_decode = msgspec.msgpack.Decoder(Receipt).decode
_log = logs.get(part="receipts")

#: A worker told something that it cannot know.
Strike = Callable[[NodeId], object]


async def of(
    rpc: node_interface.NodeRpc, directory: node_interface.NodeDirectory, reservations: Sequence[OpenReservation], strike: Strike
) -> dict[RequestId, Receipt]:
    """What is known of these requests. A request that still runs has ``inference.RUNNING``. Never raises for a worker that does not
    answer, or lies."""
    # A paused worker, and one that drains, remember as well as others.
    alive = {worker.node for worker in directory.entries(Role.WORKER) if worker.alive}
    wanted = {one.request_id: one for one in reservations}
    asked: dict[NodeId, list[RequestId]] = {}
    for one in reservations:
        if one.workers and one.workers[-1] in alive:
            asked.setdefault(one.workers[-1], []).append(one.request_id)
    found: dict[RequestId, Receipt] = {}

    async def ask(node: NodeId, request_ids: Sequence[RequestId]) -> None:
        for signed in await _read(rpc, node, request_ids):
            receipt = _good(signed, node)
            if receipt is not None and _ran_last(node, receipt.request_id, wanted):
                found[receipt.request_id] = receipt
            elif receipt is None or not _ran_before(node, receipt.request_id, wanted):
                _log.warning("worker told a receipt of a request that it did not run", worker=node)
                strike(node)

    async with asyncio.TaskGroup() as tasks:
        for node, request_ids in asked.items():
            tasks.create_task(ask(node, request_ids))
    return found


async def _read(rpc: node_interface.NodeRpc, node: NodeId, request_ids: Sequence[RequestId]) -> Iterable[SignedReceipt]:
    found: list[SignedReceipt] = []
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for first in range(0, len(request_ids), inference.MOST_RECEIPTS):
                asked = inference.ReadReceipts(tuple(request_ids[first : first + inference.MOST_RECEIPTS]))
                told = await rpc.call(inference.read_receipts, asked, to=node, deadline_seconds=DEADLINE_SECONDS)
                # More than was asked for needs no look to be wrong, but one too many to be told.
                found += told.receipts[: len(asked.request_ids) + 1]
    except (errors.AimeshError, TimeoutError):
        return found
    return found


def _good(signed: SignedReceipt, node: NodeId) -> Receipt | None:
    """None where this worker did not sign it, or it cannot be true."""
    if not node_keys.verify(node, inference.RECEIPT_PURPOSE, signed.text, signed.signature):
        return None
    try:
        receipt = _decode(signed.text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return receipt if min(receipt.prompt_tokens, receipt.completion_tokens, receipt.credited_tokens) >= 0 else None


def _ran_last(node: NodeId, request_id: RequestId, wanted: Mapping[RequestId, OpenReservation]) -> bool:
    reservation = wanted.get(request_id)
    return reservation is not None and reservation.workers[-1:] == (node,)


def _ran_before(node: NodeId, request_id: RequestId, wanted: Mapping[RequestId, OpenReservation]) -> bool:
    reservation = wanted.get(request_id)
    return reservation is not None and node in reservation.workers
