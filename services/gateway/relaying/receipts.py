"""What the workers say they did for requests whose gateway died. Their word: who settles by it bounds it by what was reserved."""

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from services.gateway import mesh
from shared import errors, identity
from shared.api import inference
from shared.api.inference import Receipt, SignedReceipt
from shared.directory import Entry
from shared.types import NodeId, RequestId, Role

#: A worker that does not answer by then is asked again with the next look at what is open.
DEADLINE_SECONDS = 2.0

_decode = msgspec.msgpack.Decoder(Receipt).decode


async def of(rpc: mesh.Rpc, directory: mesh.Directory, request_ids: Sequence[RequestId]) -> dict[RequestId, Receipt]:
    """What is known of these requests, by every worker that is alive. A request that runs still has ``inference.RUNNING``. Never raises
    for a worker that does not answer, or lies about who it is."""
    found: dict[RequestId, Receipt] = {}

    async def ask(worker: Entry) -> None:
        for receipt in await _read(rpc, worker.node, request_ids):
            found[receipt.request_id] = _later(found.get(receipt.request_id), receipt)

    async with asyncio.TaskGroup() as tasks:
        # A paused worker, and one that drains, remember as well as others.
        for worker in directory.entries(Role.WORKER):
            if worker.alive:
                tasks.create_task(ask(worker))
    return found


async def _read(rpc: mesh.Rpc, node: NodeId, request_ids: Sequence[RequestId]) -> list[Receipt]:
    wanted = frozenset(request_ids)
    found: list[Receipt] = []
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            for first in range(0, len(request_ids), inference.MOST_RECEIPTS):
                asked = inference.ReadReceipts(tuple(request_ids[first : first + inference.MOST_RECEIPTS]))
                told = await rpc.call(inference.read_receipts, asked, to=node, deadline_seconds=DEADLINE_SECONDS)
                found += (receipt for receipt in _good(told.receipts, node) if receipt.request_id in wanted)
    except (errors.AimeshError, TimeoutError):
        return found
    return found


def _good(receipts: Iterable[SignedReceipt], node: NodeId) -> Iterable[Receipt]:
    """Those that are this worker's and can be true."""
    for signed in receipts:
        if not identity.verify(node, inference.RECEIPT_PURPOSE, signed.text, signed.signature):
            continue
        try:
            receipt = _decode(signed.text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if min(receipt.prompt_tokens, receipt.delivered_before, receipt.completion_tokens) >= 0:
            yield receipt


def _later(one: Receipt | None, other: Receipt) -> Receipt:
    """Of two workers the one that went on where the other was. Who runs it still has the last word."""
    if one is None:
        return other
    return max(one, other, key=lambda receipt: (receipt.ended == inference.RUNNING, receipt.delivered_before + receipt.completion_tokens))
