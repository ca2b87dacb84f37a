"""How the gateway reads receipts from workers that may be gone, slow or dishonest."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.gateway.billing import orphan_settlement
from services.gateway.billing.reservations import OpenReservation
from shared import errors
from shared.api import inference
from shared.api.inference import Receipt, SignedReceipt
from shared.context import new_request_id
from shared.identity import node_keys
from shared.protocol.directory import Announcement, Directory
from shared.types import ModelName, NodeId, RequestId, Role
from tests.services.gateway import fakes
from tests.services.gateway.fakes import USER

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Answering = Callable[[inference.ReadReceipts], Awaitable[inference.Receipts]]


class Worker:
    """A worker that returns the given receipts."""

    def __init__(self, *receipts: Receipt, signed_by: node_keys.NodeKey | None = None) -> None:
        self.key = node_keys.NodeKey(node_keys.new_seed())
        self._receipts = receipts
        self._signer = signed_by or self.key

    async def answer(self, request: inference.ReadReceipts) -> inference.Receipts:
        texts = [msgspec.msgpack.encode(one) for one in self._receipts]
        return inference.Receipts(tuple(SignedReceipt(text, self._signer.sign("receipt", text)) for text in texts))


class Mesh:
    def __init__(self, *workers: Worker) -> None:
        self.directory = Directory(lambda: 0.0)
        self._workers: dict[NodeId, Answering] = {}
        self.received: list[inference.ReadReceipts] = []
        self.struck: list[NodeId] = []
        self.items = fakes.new_items()
        for worker in workers:
            self.add(worker.key, worker.answer)

    def add(self, key: node_keys.NodeKey, answer: Answering) -> None:
        self._workers[key.id] = answer
        self.directory.apply_announcement(Announcement(Role.WORKER, key.id, "1", NOW, not_ready="paused by its owner"), "nats")

    async def call(self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float = 10, **_: Any) -> Any:
        assert method is inference.read_receipts
        assert to is not None
        self.received.append(request)
        async with asyncio.timeout(deadline_seconds):
            return await self._workers[to](request)

    async def of(self, *reservations: OpenReservation) -> dict[RequestId, Receipt]:
        return await orphan_settlement.collect_receipts(self, self.directory, self.items, reservations, self.struck.append)  # type: ignore[arg-type]


def make_receipt(request_id: RequestId, *, prompt: int = 7, before: int = 0, completion: int = 5, ended: str = "stop") -> Receipt:
    return Receipt(request_id, prompt, before, completion, ended, None if ended == "running" else NOW, credited_tokens=completion)


def claimed(request_id: RequestId, *workers: Worker) -> OpenReservation:
    nodes = tuple(worker.key.id for worker in workers)
    return OpenReservation(request_id, USER, None, ModelName("m"), 1, 10, 50, NOW, workers=nodes)


async def test_only_the_worker_that_claimed_a_request_is_asked_for_its_receipt() -> None:
    one, two = new_request_id(), new_request_id()
    first, second, stranger = (
        Worker(make_receipt(one)),
        Worker(make_receipt(two, ended="running")),
        Worker(make_receipt(one, completion=4096)),
    )
    mesh = Mesh(first, second, stranger)
    receipts = await mesh.of(claimed(one, first), claimed(two, second), claimed(new_request_id()))
    assert receipts == {one: make_receipt(one), two: make_receipt(two, ended="running")}
    assert [request.request_ids for request in mesh.received] == [(one,), (two,)]
    assert mesh.struck == []


async def test_a_receipt_from_another_worker_bills_nothing_and_is_a_strike() -> None:
    one, two = new_request_id(), new_request_id()
    honest = Worker(make_receipt(one, completion=5))
    liar = Worker(make_receipt(two), make_receipt(one, completion=4096))
    mesh = Mesh(honest, liar)
    assert await mesh.of(claimed(one, honest), claimed(two, liar)) == {one: make_receipt(one, completion=5), two: make_receipt(two)}
    assert mesh.struck == [liar.key.id]


async def test_a_receipt_from_a_replaced_worker_bills_nothing_without_a_strike() -> None:
    one, two = new_request_id(), new_request_id()
    before, after = Worker(make_receipt(one, completion=40), make_receipt(two)), Worker(make_receipt(one, before=4, completion=8))
    mesh = Mesh(before, after)
    receipts = await mesh.of(claimed(one, before, after), claimed(two, before))
    assert receipts == {one: make_receipt(one, before=4, completion=8), two: make_receipt(two)}
    assert mesh.struck == []


async def test_a_worker_that_claimed_a_request_again_is_its_last_worker() -> None:
    one = new_request_id()
    first, second = Worker(make_receipt(one, before=4)), Worker(make_receipt(one, completion=50))
    mesh = Mesh(first, second)
    assert await mesh.of(claimed(one, first, second, first)) == {one: make_receipt(one, before=4)}


async def test_the_receipts_of_a_worker_that_is_gone_come_from_the_one_that_adopted_them() -> None:
    one, two, three = (new_request_id() for _ in range(3))
    gone, other = Worker(), Worker()
    # The adopter also ran the first part of request ``one``, and has a receipt for that.
    adopter = Worker(make_receipt(one, completion=3))
    texts = {each: msgspec.msgpack.encode(make_receipt(each, completion=8)) for each in (one, two)}
    own = adopter.answer

    async def answer(request: inference.ReadReceipts) -> inference.Receipts:
        asked = [text for each, text in texts.items() if each in request.request_ids]
        adopted = tuple(SignedReceipt(text, gone.key.sign("receipt", text)) for text in asked)
        return inference.Receipts((*(await own(request)).receipts, *adopted))

    mesh = Mesh(other)
    mesh.add(adopter.key, answer)
    receipts = await mesh.of(claimed(one, adopter, gone), claimed(two, gone), claimed(three, other))
    assert receipts == {each: make_receipt(each, completion=8) for each in (one, two)}
    # The adopter is also asked for its own receipt for a request that the lost worker began.
    assert await mesh.of(claimed(one, gone, adopter)) == {one: make_receipt(one, completion=3)}
    assert mesh.struck == []


async def test_a_receipt_signed_by_another_key_is_ignored_and_a_strike() -> None:
    one = new_request_id()
    worker = Worker(make_receipt(one), signed_by=node_keys.NodeKey(node_keys.new_seed()))
    mesh = Mesh(worker)
    assert await mesh.of(claimed(one, worker)) == {}
    assert mesh.struck == [worker.key.id]


@pytest.mark.parametrize("lie", [{"completion": -1}, {"prompt": -5}])
async def test_negative_counts_are_ignored_and_a_strike(lie: dict[str, int]) -> None:
    one = new_request_id()
    worker = Worker(make_receipt(one, **lie))  # type: ignore[arg-type]
    mesh = Mesh(worker)
    assert await mesh.of(claimed(one, worker)) == {}
    assert mesh.struck == [worker.key.id]


async def test_an_unrequested_receipt_is_ignored_and_a_strike() -> None:
    one = new_request_id()
    worker = Worker(make_receipt(one), make_receipt(new_request_id()))
    mesh = Mesh(worker)
    assert await mesh.of(claimed(one, worker)) == {one: make_receipt(one)}
    assert mesh.struck == [worker.key.id]


async def test_missing_old_and_slow_workers_delay_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphan_settlement, "DEADLINE_SECONDS", 0.5)
    one = new_request_id()
    well, *others = [Worker(make_receipt(one)) for _ in range(5)]
    mesh = Mesh(well)

    async def gone(_: inference.ReadReceipts) -> inference.Receipts:
        raise errors.LinkLost("gone")

    async def slow(_: inference.ReadReceipts) -> inference.Receipts:
        await asyncio.Event().wait()
        raise AssertionError

    async def garbage(_: inference.ReadReceipts) -> inference.Receipts:
        key = others[2].key
        return inference.Receipts((SignedReceipt(b"\xff\x00", key.sign("receipt", b"\xff\x00")), SignedReceipt(b"", b"")))

    # The fourth worker isn't on the mesh.
    for worker, answer in zip(others, (gone, slow, garbage), strict=False):
        mesh.add(worker.key, answer)
    left = [claimed(new_request_id(), worker) for worker in others]
    assert await mesh.of(claimed(one, well), *left) == {one: make_receipt(one)}


async def test_many_receipts_are_requested_in_batches() -> None:
    worker = Worker()
    mesh = Mesh(worker)
    await mesh.of(*(claimed(new_request_id(), worker) for _ in range(600)))
    assert [len(request.request_ids) for request in mesh.received] == [256, 256, 88]
