"""Receipts as the gateway reads them, of workers that may be gone, slow or liars."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from services.gateway.relaying import receipts
from shared import errors, identity
from shared.api import inference
from shared.api.inference import Receipt, SignedReceipt
from shared.context import new_request_id
from shared.directory import Announcement, Directory
from shared.types import NodeId, RequestId, Role

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Answering = Callable[[inference.ReadReceipts], Awaitable[inference.Receipts]]


class Worker:
    """Says the receipts that it has."""

    def __init__(self, *told: Receipt, signed_by: identity.NodeKey | None = None) -> None:
        self.key = identity.NodeKey(identity.new_seed())
        self._told = told
        self._signer = signed_by or self.key

    async def answer(self, request: inference.ReadReceipts) -> inference.Receipts:
        texts = [msgspec.msgpack.encode(one) for one in self._told]
        return inference.Receipts(tuple(SignedReceipt(text, self._signer.sign("receipt", text)) for text in texts))


class Mesh:
    def __init__(self, *workers: Worker) -> None:
        self.directory = Directory(lambda: 0.0)
        self._workers: dict[NodeId, Answering] = {}
        self.asked: list[inference.ReadReceipts] = []
        for worker in workers:
            self.add(worker.key, worker.answer)

    def add(self, key: identity.NodeKey, answer: Answering) -> None:
        self._workers[key.id] = answer
        self.directory.heard(Announcement(Role.WORKER, key.id, "1", NOW, not_ready="paused by its owner"), "nats")

    async def call(self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float = 10, **_: Any) -> Any:
        assert method is inference.read_receipts
        assert to is not None
        self.asked.append(request)
        async with asyncio.timeout(deadline_seconds):
            return await self._workers[to](request)

    async def of(self, *ids: RequestId) -> dict[RequestId, Receipt]:
        return await receipts.of(self, self.directory, ids)  # type: ignore[arg-type]


def told(request_id: RequestId, *, before: int = 0, completion: int = 5, ended: str = "stop") -> Receipt:
    return Receipt(request_id, 7, before, completion, ended, None if ended == "running" else NOW)


async def test_each_worker_is_asked_and_who_went_on_has_the_last_word() -> None:
    one, two = new_request_id(), new_request_id()
    first, second = told(one, completion=5, ended="cancelled"), told(one, before=4, completion=8)
    other = told(two)
    assert await Mesh(Worker(first), Worker(second, other), Worker()).of(one, two, new_request_id()) == {one: second, two: other}


async def test_who_still_runs_it_comes_before_who_has_ended() -> None:
    one = new_request_id()
    running, ended = told(one, before=2, completion=1, ended="running"), told(one, completion=50, ended="cancelled")
    assert await Mesh(Worker(running), Worker(ended)).of(one) == {one: running}


async def test_what_somebody_else_signed_is_nothing() -> None:
    one = new_request_id()
    other = identity.NodeKey(identity.new_seed())
    assert await Mesh(Worker(told(one), signed_by=other)).of(one) == {}


@pytest.mark.parametrize("lie", [{"completion": -1}, {"before": -5}])
async def test_counts_below_zero_are_nothing(lie: dict[str, int]) -> None:
    one = new_request_id()
    assert await Mesh(Worker(told(one, **lie))).of(one) == {}  # type: ignore[arg-type]


async def test_what_was_not_asked_for_is_left_out() -> None:
    one = new_request_id()
    assert await Mesh(Worker(told(one), told(new_request_id()))).of(one) == {one: told(one)}


async def test_a_worker_that_is_gone_an_old_one_and_a_slow_one_keep_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "DEADLINE_SECONDS", 0.02)
    one = new_request_id()
    mesh = Mesh(Worker(told(one)))

    async def gone(_: inference.ReadReceipts) -> inference.Receipts:
        raise errors.LinkLost("gone")

    async def slow(_: inference.ReadReceipts) -> inference.Receipts:
        await asyncio.Event().wait()
        raise AssertionError

    async def garbage(_: inference.ReadReceipts) -> inference.Receipts:
        key = keys[2]
        return inference.Receipts((SignedReceipt(b"\xff\x00", key.sign("receipt", b"\xff\x00")), SignedReceipt(b"", b"")))

    keys = [identity.NodeKey(identity.new_seed()) for _ in range(3)]
    for key, answer in zip(keys, (gone, slow, garbage), strict=True):
        mesh.add(key, answer)
    assert await mesh.of(one) == {one: told(one)}


async def test_many_are_asked_for_in_pieces() -> None:
    mesh = Mesh(Worker())
    await mesh.of(*(new_request_id() for _ in range(600)))
    assert [len(asked.request_ids) for asked in mesh.asked] == [256, 256, 88]
