"""An answer whose connection breaks: what is requested again, what the caller receives, and when the gateway gets a cancellation."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from shared import errors
from shared.api import gateway
from shared.api.gateway import CancelInference, InferenceChunk, InferenceRequest, InferenceResult, ProcessInferenceRequest, Rest
from shared.api.generation import Usage
from shared.api.method import Nothing
from shared.resumable_stream import StreamRequest
from shared.timing.retry_policy import RetryPolicy
from shared.types import FinishReason, ModelName, NodeId, RequestId

WORDS = ("one ", "two ", "three ", "four")
REQUEST = ProcessInferenceRequest(InferenceRequest(prompt="hi"), idempotency_key="k")
RESULT = InferenceResult(RequestId(UUID(int=7)), ModelName("m"), FinishReason.STOP, Usage(1, 4), 5, 1)
QUICK = RetryPolicy(first_pause_seconds=0.001, longest_pause_seconds=0.002)
LOST = errors.LinkLost("the link fell silent")


@dataclass
class FakeStream:
    """The whole answer, or the rest of it, until it breaks."""

    node: NodeId
    rest: list[InferenceChunk]
    #: Breaks after this many pieces; None: never.
    breaks_after: int | None
    error: Exception
    end: Any = RESULT

    async def __aiter__(self) -> AsyncIterator[Any]:
        for number, chunk in enumerate(self.rest):
            if number == self.breaks_after:
                raise self.error
            yield chunk
        if self.breaks_after is not None:
            raise self.error


@dataclass
class FakeCaller:
    """Gives each stream to the next node, and breaks it as the next of ``breaks`` says."""

    breaks: list[tuple[int | None, errors.AimeshError]] = field(default_factory=list)
    pieces: Callable[[int], list[InferenceChunk]] = lambda after: [
        InferenceChunk(word, sequence=number) for number, word in enumerate(WORDS, 1)
    ][after:]
    asked: list[ProcessInferenceRequest] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    open: int = 0
    cancelled: list[tuple[str, NodeId | None]] = field(default_factory=list)
    cancel_fails: bool = False

    @asynccontextmanager
    async def stream(self, method: Any, request: Any, *, deadline_seconds: float = 300) -> AsyncIterator[Any]:
        assert method is gateway.process_inference_request
        breaks_after, error = self.breaks[len(self.asked)] if len(self.asked) < len(self.breaks) else (None, LOST)
        self.asked.append(request)
        self.deadlines.append(deadline_seconds)
        if breaks_after == -1:  # no gateway was found
            raise error
        self.open += 1
        try:
            after = 0 if request.rest is None else request.rest.after
            yield FakeStream(NodeId(f"node {len(self.asked)}"), self.pieces(after), breaks_after, error)
        finally:
            self.open -= 1

    async def call(self, method: Any, request: Any, *, to: NodeId | None = None, deadline_seconds: float = 10) -> Any:
        assert method is gateway.cancel_inference
        assert isinstance(request, CancelInference)
        assert self.open == 0  # the cancellation follows after the stream was closed
        self.cancelled.append((request.idempotency_key, to))
        if self.cancel_fails:
            raise errors.NotReachable("gone")
        return Nothing()


@dataclass
class ReceivedAnswer:
    text: str = ""
    result: InferenceResult | None = None
    #: One for each loss: whether any text had arrived before.
    losses: list[bool] = field(default_factory=list)

    def lose(self, began: bool, error: errors.AimeshError) -> None:
        self.losses.append(began)


async def read_answer(
    caller: FakeCaller,
    received: ReceivedAnswer,
    *,
    request: ProcessInferenceRequest = REQUEST,
    stops_after: int | None = None,
    seconds: float = 10,
) -> ReceivedAnswer:
    asking = StreamRequest(caller, random.Random(1), QUICK)
    async with asking.ask(request, seconds=seconds, lost=received.lose) as answer:
        async for chunk in answer:
            received.text += chunk.text
            if chunk.sequence == stops_after:
                return received
        received.result = answer.end
    return received


async def test_an_answer_without_interruption() -> None:
    caller = FakeCaller()
    received = await read_answer(caller, ReceivedAnswer())
    assert (received.text, received.result, received.losses) == ("one two three four", RESULT, [])
    assert (caller.asked, caller.cancelled) == ([REQUEST], [])


@pytest.mark.parametrize("breaks_after", range(len(WORDS) + 1))
async def test_wherever_it_breaks_nothing_is_lost_or_repeated(breaks_after: int) -> None:
    caller = FakeCaller([(breaks_after, LOST)])
    received = await read_answer(caller, ReceivedAnswer())
    assert (received.text, received.result, received.losses) == ("one two three four", RESULT, [breaks_after > 0])
    again = ProcessInferenceRequest(REQUEST.request, idempotency_key="k", rest=Rest(breaks_after) if breaks_after else None)
    assert caller.asked == [REQUEST, again]
    assert caller.cancelled == []


async def test_a_gateway_that_is_down_for_a_while_counts_as_one_loss() -> None:
    away = (-1, errors.NotReachable("no gateway is there"))
    caller = FakeCaller([(1, LOST), away, (0, errors.Draining("it goes")), (0, errors.Unavailable("postgres")), (2, LOST), away])
    received = await read_answer(caller, ReceivedAnswer())
    assert (received.text, received.result, received.losses) == ("one two three four", RESULT, [True, True])
    assert [None if request.rest is None else request.rest.after for request in caller.asked] == [None, 1, 1, 1, 1, 3, 3]


async def test_a_gateway_that_has_no_worker_is_believed_at_once() -> None:
    no_worker = errors.NotReachable("no worker serves a model now")
    caller, received = FakeCaller([(0, no_worker)]), ReceivedAnswer()
    with pytest.raises(errors.NotReachable, match="no worker"):
        await read_answer(caller, received)
    assert (received.losses, len(caller.asked)) == ([], 1)
    # After a loss, the next gateway's workers may still be connecting.
    caller = FakeCaller([(0, LOST), (0, no_worker)])
    assert (await read_answer(caller, ReceivedAnswer())).result == RESULT


async def test_waiting_notices_are_passed_on_and_are_not_chunks() -> None:
    def pieces(after: int) -> list[InferenceChunk]:
        return [InferenceChunk("", waiting="loading")] if not after else [InferenceChunk("two", sequence=2)]

    def first(after: int) -> list[InferenceChunk]:
        return [*pieces(after), InferenceChunk("one ", sequence=1)] if not after else pieces(after)

    received = await read_answer(FakeCaller([(2, LOST)], pieces=first), ReceivedAnswer())
    assert (received.text, received.result) == ("one two", RESULT)


async def test_a_permanent_error_ends_the_stream_without_a_cancellation() -> None:
    caller, received = FakeCaller([(2, errors.WorkerLost("gone"))]), ReceivedAnswer()
    with pytest.raises(errors.WorkerLost, match="gone"):
        await read_answer(caller, received)
    assert (received.text, received.losses, len(caller.asked), caller.cancelled) == ("one two ", [], 1, [])


async def test_retries_end_with_the_last_error() -> None:
    caller, losses = FakeCaller([(1, LOST), *[(-1, errors.NotReachable("no gateway is there"))] * 100]), list[str]()
    seconds = itertools.count()
    asking = StreamRequest(
        caller, random.Random(1), RetryPolicy(seconds=20, first_pause_seconds=0, longest_pause_seconds=0), lambda: next(seconds)
    )
    async with asking.ask(REQUEST, seconds=1_000, lost=lambda began, error: losses.append(f"{began} {error.code}")) as answer:
        with pytest.raises(errors.NotReachable, match="no gateway is there"):
            async for _ in answer:
                pass
    assert losses == ["True link_lost"]
    # Each attempt reads the clock twice.
    assert 10 <= len(caller.asked) <= 12
    assert caller.cancelled == []


async def test_without_a_key_the_stream_ends_with_its_connection() -> None:
    caller, received = FakeCaller([(1, LOST)]), ReceivedAnswer()
    with pytest.raises(errors.LinkLost, match="the link fell silent"):
        await read_answer(caller, received, request=ProcessInferenceRequest(InferenceRequest(prompt="hi")))
    assert (len(caller.asked), caller.cancelled) == (1, [])
    # Without a key, closing the stream is enough.
    await read_answer(caller, received, request=ProcessInferenceRequest(InferenceRequest(prompt="hi")), stops_after=1)
    assert (caller.open, caller.cancelled) == (0, [])


@pytest.mark.parametrize("cancel_fails", [False, True])
async def test_leaving_early_cancels_the_request_at_its_gateway(cancel_fails: bool) -> None:
    caller = FakeCaller([(1, LOST)], cancel_fails=cancel_fails)
    received = await read_answer(caller, ReceivedAnswer(), stops_after=3)
    assert received.text == "one two three "
    assert caller.cancelled == [("k", "node 2")]


async def test_leaving_before_a_gateway_answers_cancels_the_request_too() -> None:
    """Over HTTPS, the first event shows that a gateway has accepted the request; until then a model may be loading."""
    caller, opening = FakeCaller(), asyncio.Event()

    @asynccontextmanager
    async def never_opens(*_what: object, **_more: object) -> AsyncIterator[None]:
        opening.set()
        await asyncio.Event().wait()
        yield

    caller.stream = never_opens  # type: ignore[assignment,method-assign]  # it never gets to the answer
    asked = asyncio.create_task(read_answer(caller, ReceivedAnswer()))
    async with asyncio.timeout(30):
        await opening.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert caller.cancelled == [("k", None)]


async def test_a_cancellation_during_the_pause_ends_the_stream() -> None:
    patience = RetryPolicy(seconds=1_000, first_pause_seconds=500, longest_pause_seconds=500)
    caller, lost = FakeCaller([(1, LOST)]), asyncio.Event()

    async def ask() -> None:
        async with StreamRequest(caller, random.Random(1), patience).ask(REQUEST, seconds=10, lost=lambda *_why: lost.set()) as answer:
            async for _ in answer:
                pass

    asked = asyncio.create_task(ask())
    await lost.wait()
    asked.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert caller.cancelled == [("k", "node 1")]


async def test_a_gateway_that_skips_a_chunk_is_a_protocol_violation() -> None:
    caller = FakeCaller(pieces=lambda _: [InferenceChunk("a", sequence=1), InferenceChunk("c", sequence=3)])
    with pytest.raises(errors.ProtocolViolation, match="chunk 3 of the answer arrived after chunk 1"):
        await read_answer(caller, ReceivedAnswer())


async def test_all_attempts_share_one_deadline() -> None:
    caller = FakeCaller([(1, LOST), (1, LOST)])
    await read_answer(caller, ReceivedAnswer(), seconds=10)
    first, second, third = caller.deadlines
    assert 10 >= first > second > third > 9
