"""An endpoint that is away loses nothing for a while, takes what it missed when it is back, and never takes memory without end."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from services.metrics.export.otlp import otlp_outbox
from services.metrics.export.otlp.otlp_outbox import OtlpOutbox
from services.metrics.export.otlp.span_records import NodeSpan
from shared import errors
from shared.spans import Span, SpanKind
from shared.timing.backoff import Backoff
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until


def told(number: int) -> NodeSpan:
    return NodeSpan("gateway", "node", Span("a" * 32, f"{number:016x}", "", "work", SpanKind.INTERNAL, 0, 1, "", {}))


class Endpoint:
    def __init__(self) -> None:
        self.took: list[int] = []
        self.refusal: errors.AimeshError | None = None
        self.asked = asyncio.Condition()

    async def send(self, batch: Sequence[NodeSpan]) -> None:
        async with self.asked:
            self.asked.notify_all()
        if self.refusal is not None:
            raise self.refusal
        self.took += [int(one.span.span_id, 16) for one in batch]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(HANG_SECONDS), self.asked:
            await self.asked.wait_for(lambda: len(self.took) >= count)

    async def until_asked(self) -> None:
        async with asyncio.timeout(HANG_SECONDS), self.asked:
            await self.asked.wait()


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
    # What was taken out last has been sent when the box waits again.
    await until(lambda: not box._some.is_set())


async def test_all_are_sent_in_order_and_in_batches(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    box.put([told(number) for number in range(otlp_outbox.BATCH * 2 + 10)])
    box.put([])
    await drained(box)
    assert endpoint.took == list(range(otlp_outbox.BATCH * 2 + 10))
    assert lost == []


async def test_an_endpoint_that_is_back_takes_what_it_missed(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    endpoint.refusal = errors.Unavailable("http://otlp does not answer")
    box.put([told(1), told(2)])
    await endpoint.until_asked()
    await endpoint.until_asked()
    assert box.trouble == "http://otlp does not answer"
    box.put([told(3)])
    endpoint.refusal = None
    await drained(box)
    assert endpoint.took == [1, 2, 3]
    assert box.trouble == ""
    assert lost == []


async def test_an_endpoint_that_says_when_is_asked_then_and_not_hours_later(
    box: OtlpOutbox[NodeSpan], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_outbox, "_LONGEST_ASKED_SECONDS", 0.2)
    endpoint.refusal = errors.Unavailable("busy", retry_after_seconds=3600)
    box.put([told(1)])
    await endpoint.until_asked()
    began = time.monotonic()
    await endpoint.until_asked()
    assert time.monotonic() - began > 0.15


class Said:
    """Stands where the log is."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def warning(self, _event: str, *, why: str) -> None:
        self.lines.append(("warning", why))

    def info(self, _event: str) -> None:
        self.lines.append(("info", ""))


async def test_trouble_is_said_once_for_all_tries_and_so_is_its_end(
    box: OtlpOutbox[NodeSpan], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said()
    monkeypatch.setattr(otlp_outbox, "_log", said)
    for why in ("away", "busy"):
        endpoint.refusal = errors.Unavailable(why)
        box.put([told(1)])
        for _ in range(4):
            await endpoint.until_asked()
    endpoint.refusal = None
    box.put([told(2)])
    await drained(box)
    assert said.lines == [("warning", "away"), ("warning", "busy"), ("info", "")]


async def test_what_it_refuses_for_good_is_let_go(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    endpoint.refusal = errors.BadRequest("http://otlp refuses traces with 404")
    box.put([told(1), told(2)])
    await drained(box)
    endpoint.refusal = None
    box.put([told(3)])
    await drained(box)
    assert endpoint.took == [3]
    assert lost == [2]


async def test_the_oldest_go_where_there_are_too_many(box: OtlpOutbox[NodeSpan], endpoint: Endpoint, lost: list[int]) -> None:
    endpoint.refusal = errors.Unavailable("away")
    for start in range(0, otlp_outbox.MAX_WAITING + 5_000, 1_000):
        box.put([told(number) for number in range(start, start + 1_000)])
    assert len(box) <= otlp_outbox.MAX_WAITING
    assert sum(lost) == 5_000
    await endpoint.until_asked()
    endpoint.refusal = None
    await drained(box)
    assert endpoint.took[-1] == otlp_outbox.MAX_WAITING + 4_999
    assert len(endpoint.took) + sum(lost) == otlp_outbox.MAX_WAITING + 5_000
