"""When an unavailable endpoint is back, it gets what it missed, within a bound on memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from services.metrics.export import otlp_outbox
from services.metrics.export.otlp_outbox import OtlpOutbox
from services.metrics.export.otlp_records import NodeSpan
from shared import errors
from shared.spans import Span, SpanKind
from shared.timing.backoff import Backoff
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until


def node_span(number: int) -> NodeSpan:
    return NodeSpan("gateway", "node", Span("a" * 32, f"{number:016x}", "", "work", SpanKind.INTERNAL, 0, 1, "", {}))


class Endpoint:
    def __init__(self) -> None:
        self.took: list[int] = []
        self.refusal: errors.AimeshError | None = None
        self.called = asyncio.Condition()

    async def send(self, batch: Sequence[NodeSpan]) -> None:
        async with self.called:
            self.called.notify_all()
        if self.refusal is not None:
            raise self.refusal
        self.took += [int(one.span.span_id, 16) for one in batch]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(HANG_SECONDS), self.called:
            await self.called.wait_for(lambda: len(self.took) >= count)

    async def until_called(self) -> None:
        async with asyncio.timeout(HANG_SECONDS), self.called:
            await self.called.wait()


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def lost() -> list[int]:
    return []


@pytest.fixture
async def box(endpoint: Endpoint, lost: list[int], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OtlpOutbox[NodeSpan]]:
    monkeypatch.setattr(otlp_outbox, "_BACKOFF", Backoff(0.01, 10))
    made = OtlpOutbox("spans", endpoint.send, lost.append, lost.append)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()


async def drained(box: OtlpOutbox[NodeSpan]) -> None:
    await until(lambda: len(box) == 0)
    # The outbox waits again only after it has sent what it took out last.
    await until(lambda: not box._has_waiting.is_set())


async def test_items_are_sent_in_order_and_in_batches(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    box.put([node_span(number) for number in range(otlp_outbox.BATCH * 2 + 10)])
    box.put([])
    await drained(box)
    assert endpoint.took == list(range(otlp_outbox.BATCH * 2 + 10))
    assert lost == []


async def test_recovered_endpoint_gets_what_it_missed(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    endpoint.refusal = errors.Unavailable("http://otlp does not answer")
    box.put([node_span(1), node_span(2)])
    await endpoint.until_called()
    await endpoint.until_called()
    assert box.trouble == "http://otlp does not answer"
    box.put([node_span(3)])
    endpoint.refusal = None
    await drained(box)
    assert endpoint.took == [1, 2, 3]
    assert box.trouble == ""
    assert lost == []


async def test_retry_after_is_honored_up_to_a_limit(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_outbox, "_MAX_RETRY_AFTER_SECONDS", 0.2)
    endpoint.refusal = errors.Unavailable("busy", retry_after_seconds=3600)
    box.put([node_span(1)])
    await endpoint.until_called()
    began = time.monotonic()
    await endpoint.until_called()
    assert time.monotonic() - began > 0.15


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def warning(self, _event: str, *, why: str) -> None:
        self.lines.append(("warning", why))

    def info(self, _event: str) -> None:
        self.lines.append(("info", ""))


async def test_failure_and_recovery_are_logged_once(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FakeLog()
    monkeypatch.setattr(otlp_outbox, "_log", log)
    for why in ("away", "busy"):
        endpoint.refusal = errors.Unavailable(why)
        box.put([node_span(1)])
        for _ in range(4):
            await endpoint.until_called()
    endpoint.refusal = None
    box.put([node_span(2)])
    await drained(box)
    assert log.lines == [("warning", "away"), ("warning", "busy"), ("info", "")]


async def test_permanently_rejected_batch_is_dropped(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    endpoint.refusal = errors.BadRequest("http://otlp refuses traces with 404")
    box.put([node_span(1), node_span(2)])
    await drained(box)
    endpoint.refusal = None
    box.put([node_span(3)])
    await drained(box)
    assert endpoint.took == [3]
    assert lost == [2]


async def test_oldest_items_are_dropped_when_full(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    endpoint.refusal = errors.Unavailable("away")
    for start in range(0, otlp_outbox.MAX_WAITING + 5_000, 1_000):
        box.put([node_span(number) for number in range(start, start + 1_000)])
    assert len(box) <= otlp_outbox.MAX_WAITING
    assert sum(lost) == 5_000
    await endpoint.until_called()
    endpoint.refusal = None
    await drained(box)
    assert endpoint.took[-1] == otlp_outbox.MAX_WAITING + 4_999
    assert len(endpoint.took) + sum(lost) == otlp_outbox.MAX_WAITING + 5_000
