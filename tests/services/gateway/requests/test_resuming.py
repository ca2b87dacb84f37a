"""Answers whose worker fails in the middle, at tokens that the test chooses, over the real ``Workers``."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.reader import Reader
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.requests import generation
from services.gateway.requests.generation import (
    FIRST_WAIT_SECONDS,
    MAX_CHUNK_CHARACTERS,
    RESUME_WAIT_SECONDS,
    Failed,
    FindWorker,
    Generation,
    NotReached,
    Pause,
)
from services.gateway.requests.workers import Workers
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.retry_budget import WINDOW_SECONDS
from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd, Tool, ToolCallPart, Usage
from shared.api.inference import Chunk, PromptAccepted
from shared.context import new_request_id
from shared.protocol.directory import Announcement, ModelOffer, WorkerLoad
from shared.types import FinishReason, ModelName
from tests.services.gateway import thinking
from tests.services.gateway.fakes import USER, FakeDirectory, FakeRpc, FakeWorker, announcement, node_id
from tests.services.gateway.pulled import generated
from tests.services.gateway.thinking import Thinks
from tests.shared.timing.virtual_time import VirtualLoop, pass_time

MODEL = ModelName("m")
DIGEST = "d" * 64
WORDS = tuple(f" w{number}" for number in range(8))
#: The position of a worker that is cut off after all its tokens, but before their end.
BEFORE_THE_END = len(WORDS)
WISH = WorkerRequirements(MODEL, USER, USER, prompt_tokens=1, max_tokens=10, placement=ANYWHERE)


def new_core() -> Generation:
    """Return the core of an answer that a worker begins."""
    core = Generation(generation.PROMPT, WISH, ends_at=1000, answers=1)
    core.claimed(DIGEST, now=0)
    return core


@dataclass
class Teller(FakeWorker):
    """Generates WORDS after those that were delivered, one token each; fails once before each of the tokens in ``falls``.

    Its text lags by a word, as it would with half a character or the beginning of a stop sequence."""

    falls: list[tuple[int, errors.AimeshError]] = field(default_factory=list)
    is_opaque: bool = False
    hangs: bool = False
    #: It loads the model for the first request, and announces then what it computes with.
    is_unloaded: bool = False

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        held = WORDS[len(prompt.delivered) - 1] if prompt.delivered else ""
        for position in range(len(prompt.delivered), len(WORDS)):
            self._fall(position)
            last = position == len(WORDS) - 1
            text, held = held + (WORDS[position] if last else ""), WORDS[position]
            finish = FinishReason.LENGTH if last else None
            yield Chunk(text, () if self.is_opaque else (position + 1,), finish=finish)
        self._fall(BEFORE_THE_END)
        yield GenerationEnd(FinishReason.LENGTH, Usage(self.prompt_tokens, len(WORDS) - len(prompt.delivered), 2))

    def _fall(self, position: int) -> None:
        if self.falls and self.falls[0][0] == position:
            raise self.falls.pop(0)[1]


class ResumingHarness:
    def __init__(self, *workers: FakeWorker, digests: Sequence[str] = (), **more: Any) -> None:
        self.rpc, self.directory = FakeRpc(), FakeDirectory()
        self.counted: Counter[tuple[str, str]] = Counter()
        self.workers = workers
        dispatch = Dispatch(self.directory, random.Random(5))
        self.asking = Workers(self.rpc, dispatch, draw=lambda: 0.0, count=self._count, **more)
        for number, worker in enumerate(workers):
            self.rpc.workers[node_id(number)] = worker
            self.directory.apply_announcement(self._announcement(number, digests[number] if digests else DIGEST, worker), "nats")

    @staticmethod
    def _announcement(number: int, digest: str, worker: FakeWorker) -> Announcement:
        # The first is the least loaded, so it is asked first.
        is_loaded = not getattr(worker, "is_unloaded", False)
        offer = ModelOffer(MODEL, 2048, digest, loaded=is_loaded, numerics=worker.numerics if is_loaded else "")
        return replace_models(announcement(number, load=WorkerLoad(slots=100, running=number)), offer)

    def _count(self, kind: str, outcome: str) -> None:
        self.counted[kind, outcome] += 1

    async def collect(
        self, prompt: inference.ProcessPrompt | None = None, *, seconds: float = 30
    ) -> tuple[list[PromptAccepted], str, list[int], GenerationEnd | None]:
        """Collect the answer, or raise what ``Workers`` raises; ``received`` has what arrived before."""
        self.received: list[Any] = []
        async with aclosing(generated(self.asking, prompt or make_prompt(), WISH, seconds=seconds)) as answers:
            async for item in answers:
                self.received.append(item)
        chunks = [one for one in self.received if isinstance(one, Chunk)]
        end = self.received[-1]
        return (
            [one for one in self.received if isinstance(one, PromptAccepted)],
            "".join(chunk.text for chunk in chunks),
            [token for chunk in chunks for token in chunk.token_ids],
            end if isinstance(end, GenerationEnd) else None,
        )


def replace_models(item: Announcement, offer: ModelOffer) -> Announcement:
    return Announcement(item.role, item.node, item.version, item.started_at, (offer,), item.load)


def make_prompt(**config: Any) -> inference.ProcessPrompt:
    return inference.ProcessPrompt("hi", inference.ModelConfig(model=MODEL, seed=5, **config), new_request_id())


def lost(position: int, kind: type[errors.AimeshError] = errors.LinkLost) -> tuple[int, errors.AimeshError]:
    return position, kind("gone")


WHOLE = ([PromptAccepted(7)], "".join(WORDS), list(range(1, 9)))


@pytest.mark.parametrize("position", range(1, BEFORE_THE_END))
@pytest.mark.parametrize("kind", [errors.LinkLost, errors.ModelCrashed, errors.Draining, errors.Unavailable, errors.ProtocolViolation])
async def test_another_worker_resumes_after_the_last_token(position: int, kind: type[errors.AimeshError]) -> None:
    first, second = Teller(falls=[lost(position, kind)]), Teller(prompt_tokens=9)
    harness = ResumingHarness(first, second)
    accepted, text, tokens, end = await harness.collect()
    assert (accepted, text, tokens) == WHOLE
    # The prompt tokens are those that the first worker counted, and every token counts once.
    assert end == GenerationEnd(FinishReason.LENGTH, Usage(7, len(WORDS), 2))
    assert second.received[0].delivered == tuple(range(1, position + 1))
    assert second.received[0].model_config.seed == first.received[0].model_config.seed
    assert harness.counted == {("resumption", "answered"): 1}


@pytest.mark.parametrize("position", range(1, len(thinking.ANSWER) + 1))
async def test_thoughts_and_calls_are_neither_lost_nor_doubled(position: int) -> None:
    harness = ResumingHarness(Thinks(falls=[position]), Thinks())
    *_, end = await harness.collect(make_prompt(tools=(Tool("look_up"),)))
    chunks = [one for one in harness.received if isinstance(one, Chunk)]
    assert thinking.read(chunks) == (thinking.THOUGHTS, thinking.TEXT, thinking.CALLS)
    assert end == GenerationEnd(FinishReason.STOP, Usage(7, 7, reasoning_tokens=2))


@pytest.mark.parametrize(
    "parts",
    [
        (ToolCallPart(1, "{}", "c", "f"),),
        (ToolCallPart(-1, "{}"),),
        (ToolCallPart(0, "{}"),),
        (ToolCallPart(0, "{}", "c", "f"), ToolCallPart(1, "{}", "c", "f"), ToolCallPart(0, "{}")),
        (ToolCallPart(0, "x" * (MAX_CHUNK_CHARACTERS + 1), "c", "f"),),
    ],
)
def test_wrong_parts_of_calls_are_refused(parts: tuple[ToolCallPart, ...]) -> None:
    core = new_core()
    with pytest.raises(errors.ProtocolViolation, match=r"call|characters"):
        core.item(Chunk("", (1,), call_parts=parts))
    with pytest.raises(errors.ProtocolViolation, match="characters"):
        core.item(Chunk("", (1,), reasoning="x" * (MAX_CHUNK_CHARACTERS + 1)))


async def test_losing_a_worker_after_the_last_token_needs_no_resumption() -> None:
    second = Teller()
    harness = ResumingHarness(Teller(falls=[lost(BEFORE_THE_END)]), second)
    assert await harness.collect() == (*WHOLE, GenerationEnd(FinishReason.LENGTH, Usage(7, len(WORDS))))
    assert not second.received


async def test_an_answer_is_resumed_at_most_twice() -> None:
    # Every worker fails.
    falls = [lost(2), lost(4)]
    harness = ResumingHarness(*(Teller(falls=falls) for _ in range(4)))
    assert (await harness.collect())[:3] == WHOLE
    falls = [lost(2), lost(4), lost(6)]
    harness = ResumingHarness(*(Teller(falls=falls) for _ in range(4)))
    with pytest.raises(errors.WorkerLost, match="the worker was lost during its answer, and no other worker could resume it: gone"):
        await harness.collect()
    assert harness.counted == {("resumption", "failed"): 2}
    # The tokens that arrived before have no gap.
    assert [token for one in harness.received if isinstance(one, Chunk) for token in one.token_ids] == [1, 2, 3, 4, 5, 6]


async def test_a_restarted_worker_resumes_its_own_answer() -> None:
    harness = ResumingHarness(
        Teller(falls=[lost(3), lost(3, errors.Unavailable), lost(3, errors.Unavailable), lost(3, errors.NotReachable)])
    )
    assert (await harness.collect())[:3] == WHOLE
    assert len(harness.workers[0].received) == 5


@pytest.mark.parametrize("kind", [errors.LinkLost, errors.Draining, errors.NotReachable])
async def test_the_only_worker_is_retried_if_it_may_be_back_soon(kind: type[errors.AimeshError]) -> None:
    harness = ResumingHarness(Teller(falls=[lost(0, kind)]))
    assert (await harness.collect())[1:3] == WHOLE[1:]
    assert harness.counted == {("retry", "answered"): 1}


async def test_workers_that_could_not_be_reached_have_made_no_attempt() -> None:
    """As all of them, in the moment in which the NATS server dies."""
    harness = ResumingHarness(*(Teller(falls=[lost(0, errors.NotReachable)] * 2) for _ in range(3)))
    assert (await harness.collect())[1:3] == WHOLE[1:]


def test_few_of_many_workers_are_asked_before_a_pause_while_none_can_be_reached() -> None:
    core, lost = new_core(), errors.NotReachable("gone")
    for time in (0.0, 1.0):
        steps = [core.failed(node_id(number), lost) for number in range(3)]
        assert [type(step) for step in steps] == [FindWorker, FindWorker, NotReached]
        assert isinstance(core.no_worker(lost, time, lambda: 1.0), Pause)
    assert isinstance(core.no_worker(lost, FIRST_WAIT_SECONDS, lambda: 1.0), Failed)


async def test_pauses_grow_with_jitter() -> None:
    core = new_core()
    core.item(Chunk("a", (1,)))
    core.failed(node_id(1), errors.LinkLost("gone"))
    no_worker = errors.NotReachable("nobody")
    assert [core.no_worker(no_worker, 0.0, lambda: 1.0) for _ in range(6)] == list(map(Pause, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)))
    assert core.no_worker(no_worker, 1.0, lambda: 0.25) == Pause(0.25)
    assert isinstance(core.no_worker(no_worker, RESUME_WAIT_SECONDS, lambda: 1.0), Failed)


def test_nothing_waits_for_a_lost_worker_if_another_target_may_answer() -> None:
    core = Generation(generation.PROMPT, msgspec.structs.replace(WISH, has_alternative=True), ends_at=1000, answers=1)
    core.claimed(DIGEST, now=0)
    core.failed(node_id(1), errors.LinkLost("gone"))
    assert isinstance(core.no_worker(errors.NotReachable("nobody"), 0.0, lambda: 1.0), Failed)


def test_the_start_of_a_worker_does_not_count_into_its_deadline() -> None:
    core = Generation(generation.PROMPT, WISH, ends_at=10, answers=1)
    assert core.claimed(DIGEST, now=8, start_wait_seconds=5).seconds == 7


async def test_what_a_worker_has_processed_excludes_what_others_had() -> None:
    core = new_core()
    core.accepted(PromptAccepted(7))
    core.item(Chunk("ab", (1, 2)))
    core.failed(node_id(1), errors.LinkLost("gone"))
    core.claimed(DIGEST, now=0)
    core.item(Chunk("c", (3,)))
    assert core.processed_tokens == (7, 1)


async def test_waiting_for_a_worker_ends() -> None:
    ticks = iter(range(10_000))
    harness = ResumingHarness(Teller(falls=[lost(3), *(lost(3, errors.Unavailable) for _ in range(200))]), clock=lambda: float(next(ticks)))
    with pytest.raises(errors.WorkerLost, match="gone"):
        await harness.collect()
    assert len(harness.workers[0].received) < 30


async def test_waiting_for_a_worker_ends_at_the_deadline() -> None:
    ticks = iter(range(10_000))
    harness = ResumingHarness(Teller(falls=[lost(3), *(lost(3, errors.Unavailable) for _ in range(200))]), clock=lambda: float(next(ticks)))
    with pytest.raises(errors.DeadlineExceeded, match="could resume the answer in time"):
        await harness.collect(seconds=RESUME_WAIT_SECONDS / 2)


async def test_a_worker_with_another_model_file_does_not_resume() -> None:
    first, other = Teller(falls=[lost(3), lost(3, errors.NotReachable)]), Teller()
    harness = ResumingHarness(first, other, digests=[DIGEST, "e" * 64])
    assert (await harness.collect())[:3] == WHOLE
    # The gateway waited for the first worker.
    assert (len(first.received), len(other.received)) == (3, 0)


async def test_a_worker_that_computes_otherwise_does_not_resume() -> None:
    first, other = Teller(falls=[lost(3), *[lost(3, errors.NotReachable)] * 200], numerics="a"), Teller(numerics="b")
    ticks = iter(range(10_000))
    harness = ResumingHarness(first, other, clock=lambda: float(next(ticks)))
    with pytest.raises(errors.WorkerLost, match="no other worker could resume it"):
        await harness.collect()
    assert not other.received


@pytest.mark.parametrize("is_unloaded", [False, True])
async def test_a_worker_that_computes_the_same_resumes_and_learns_what_the_answer_began_with(is_unloaded: bool) -> None:
    other = Teller(numerics="a", is_unloaded=is_unloaded)
    harness = ResumingHarness(Teller(falls=[lost(3)], numerics="a"), other)
    assert (await harness.collect())[1:3] == WHOLE[1:]
    assert [(prompt.delivered, prompt.numerics) for prompt in other.received] == [((1, 2, 3), "a")]


async def test_a_request_that_crashes_two_engines_while_resuming_is_poison() -> None:
    falls = [lost(2, errors.ModelCrashed), lost(3, errors.ModelCrashed)]
    harness = ResumingHarness(*(Teller(falls=falls) for _ in range(3)))
    with pytest.raises(errors.Poison, match="twice"):
        await harness.collect()
    assert sum(len(worker.received) for worker in harness.workers) == 2


async def test_an_exhausted_retry_budget_returns_the_error() -> None:
    harness = ResumingHarness(*(Teller(falls=[lost(0)] * 200) for _ in range(2)))
    outcomes = []
    for _ in range(80):
        with pytest.raises(errors.LinkLost, match="gone"):
            await harness.collect()
        outcomes.append(sum(len(worker.received) for worker in harness.workers))
    # The budget: ten per second over the window, plus a fifth of the requests.
    assert outcomes[-1] - 80 <= 100 + 80 * 0.2
    assert harness.counted["retry", "over_budget"] > 0


async def test_ended_requests_count_for_retries_only_within_the_window() -> None:
    now = 0.0
    tellers = [Teller(), Teller()]
    harness = ResumingHarness(*tellers, clock=lambda: now)
    for _ in range(500):
        await harness.collect()
    now = 2 * WINDOW_SECONDS
    for teller in tellers:
        teller.falls, teller.received = [lost(0)] * 400, []
    for _ in range(150):
        with pytest.raises(errors.LinkLost, match="gone"):
            await harness.collect()
    assert sum(len(teller.received) for teller in tellers) - 150 <= 100 + 150 * 0.2


async def test_a_worker_that_cannot_resume_is_not_reported_as_a_bad_request() -> None:
    falls = [lost(2), lost(2, errors.BadRequest)]
    harness = ResumingHarness(*(Teller(falls=falls) for _ in range(3)))
    assert (await harness.collect())[:3] == WHOLE
    assert sum(len(worker.received) for worker in harness.workers) == 3


@pytest.mark.parametrize("opaque", [True, False], ids=["a backend without token ids", "several answers"])
async def test_an_answer_that_cannot_be_resumed_ends_with_one_clear_error(*, opaque: bool) -> None:
    second = Teller()
    harness = ResumingHarness(Teller(falls=[lost(3)], is_opaque=opaque), second)
    with pytest.raises(errors.WorkerLost) as caught:
        await harness.collect(None if opaque else make_prompt(n=2))
    problem = caught.value.to_problem()
    assert (problem.code, problem.retryable, caught.value.status) == ("worker_lost", True, 503)
    assert not second.received


async def test_a_stalled_worker_is_replaced() -> None:
    second = Teller()
    harness = ResumingHarness(FakeWorker(words=WORDS, hangs_after=3), second, stall_seconds=0.5)
    _, text, tokens, _ = await harness.collect()
    assert tokens == WHOLE[2]
    assert second.received[0].delivered == (1, 2, 3)
    assert harness.workers[0].left_early == 1
    assert text  # FakeWorker's text doesn't lag, so a part is repeated; the tokens show the truth


async def test_a_caller_that_disconnects_during_a_stall_is_only_canceled() -> None:
    worker = FakeWorker(words=WORDS, hangs_after=3)
    harness = ResumingHarness(worker, Teller(), stall_seconds=30)
    task = asyncio.create_task(harness.collect())
    await worker.is_hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.left_early == 1
    assert not harness.workers[1].received


def generate_in_virtual_time(harness: ResumingHarness, reader: Reader[Any, Any], *, disconnects_after: float | None = None) -> bool:
    """Return whether the answer has its end; False if its caller has disconnected."""

    async def run() -> bool:
        loop = asyncio.get_running_loop()
        harness.asking.clock = loop.time
        generating = loop.create_task(harness.asking.generate(make_prompt(), WISH, 30, reader))
        if disconnects_after is not None:
            loop.call_later(disconnects_after, generating.cancel)
        await asyncio.wait([generating])
        return not generating.cancelled() and generating.result() is not None

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


def test_a_caller_that_reads_slowly_keeps_its_worker() -> None:
    class Slow(Reader[Any, Any]):
        async def take(self, number: int, piece: Any, at: Any) -> bool:
            await pass_time(3)
            return True

    second = Teller()
    assert generate_in_virtual_time(ResumingHarness(FakeWorker(words=WORDS), second, stall_seconds=1), Slow())
    assert not second.received


@pytest.mark.parametrize(("digests", "others"), [((DIGEST, DIGEST), 1), (("", ""), 0)], ids=["can resume", "cannot"])
def test_only_an_answer_that_can_resume_leaves_a_silent_worker(digests: tuple[str, str], others: int) -> None:
    class Pausing(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
            async for item in super().run(prompt):
                await pass_time(3)
                yield item

    second = Teller()
    assert generate_in_virtual_time(ResumingHarness(Pausing(words=WORDS), second, digests=digests, stall_seconds=1), Reader())
    assert len(second.received) == others


def test_a_caller_that_disconnects_when_its_worker_is_given_up_gets_no_other() -> None:
    second = Teller()
    harness = ResumingHarness(FakeWorker(words=WORDS, hangs_after=3), second, stall_seconds=1)
    assert not generate_in_virtual_time(harness, Reader(), disconnects_after=1)
    assert not second.received


ILLEGAL = [
    pytest.param([Chunk("a", (1,), finish=FinishReason.STOP), Chunk("b", (2,))], id="continues after its end"),
    pytest.param([Chunk("a", (1,), answer=1)], id="an answer that was not requested"),
    pytest.param([Chunk("a", (1,), answer=-1)], id="a negative answer number"),
    pytest.param([Chunk("a", (-1,))], id="a negative token id"),
    pytest.param([Chunk("a", (2**63,))], id="a token id that is too large"),
    pytest.param([Chunk("a" * 65_537, (1,))], id="a chunk of more than 64 KiB"),
    pytest.param([Chunk("a", (1,) * 9)], id="more tokens than were asked for"),
    pytest.param([Chunk("a" * 60_000, (1,)), Chunk("b" * 60_000, (1,))], id="more text than there are tokens for"),
]


@pytest.mark.parametrize("chunks", ILLEGAL)
async def test_invalid_chunks_never_reach_the_caller(chunks: list[Chunk]) -> None:
    class MiscountingWorker(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
            for chunk in chunks:
                yield chunk
            yield GenerationEnd(FinishReason.STOP, Usage(7, 2))

    harness = ResumingHarness(MiscountingWorker())
    with pytest.raises((errors.ProtocolViolation, errors.WorkerLost)):
        _, text, *_ = await harness.collect(make_prompt(max_tokens=8))
        # This answer was complete before it continued; the rest is dropped.
        assert text == "a"
        raise errors.ProtocolViolation("was cut off")
    assert chunks[-1] not in harness.received


FAILURES = st.sampled_from(
    [
        errors.LinkLost,
        errors.ModelCrashed,
        errors.Unavailable,
        errors.Draining,
        errors.Overloaded,
        errors.BadRequest,
        errors.ProtocolViolation,
    ]
)
FALLS = st.lists(st.tuples(st.integers(0, BEFORE_THE_END), FAILURES), max_size=3)


@given(falls=st.lists(FALLS, min_size=1, max_size=4))
@example(falls=[[(1, errors.Unavailable), (4, errors.Unavailable), (3, errors.ModelCrashed)]] * 2)
def test_whatever_fails_the_caller_gets_the_whole_answer_or_its_start_and_one_error(
    falls: list[list[tuple[int, type[errors.AimeshError]]]],
) -> None:
    async def run() -> None:
        # Slow enough that no deadline passes before the patience with lost workers ends.
        ticks = iter(range(10_000))
        harness = ResumingHarness(*(Teller(falls=[lost(*one) for one in mine]) for mine in falls), clock=lambda: next(ticks) / 2)
        error, end = None, None
        try:
            *_, end = await harness.collect(make_prompt(max_tokens=len(WORDS)))
        except errors.AimeshError as raised:
            error = raised
        item = [one for one in harness.received if isinstance(one, Chunk)]
        text, tokens = "".join(chunk.text for chunk in item), [token for chunk in item for token in chunk.token_ids]
        assert "".join(WORDS).startswith(text)
        assert tokens == list(range(1, len(tokens) + 1))
        if error is None:
            assert (text, len(tokens)) == ("".join(WORDS), len(WORDS))
            assert end is not None
            assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (7, len(WORDS))
        elif tokens:
            assert isinstance(error, errors.WorkerLost | errors.Poison)
        # At most three workers get the request.
        gave = [prompt for worker in harness.workers for prompt in worker.received]
        assert len({prompt.delivered for prompt in gave}) <= 3

    asyncio.run(run())
