import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.reader import Reader
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.requests import generation
from services.gateway.requests.generation import Failed, FindWorker, Generation
from services.gateway.requests.workers import Workers
from services.gateway.scheduling import worker_records
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, GenerationEnd, Usage
from shared.api.inference import PromptAccepted
from shared.protocol.directory import ResumeOrigin, WorkerLoad
from shared.types import FinishReason, ModelName, NodeId, RequestId
from tests.services.gateway.fakes import USER, FakeDirectory, FakeRpc, FakeWorker, node_id
from tests.services.gateway.pulled import generated
from tests.shared.timing.virtual_time import VirtualLoop, pass_time

PROMPT = inference.ProcessPrompt((ChatMessage("user", "hi"),), inference.ModelConfig(model=ModelName("m")), RequestId(node_id))  # type: ignore[arg-type]

WISH = WorkerRequirements(ModelName("m"), USER, USER, prompt_tokens=1, max_tokens=10, placement=ANYWHERE)


class WorkersHarness:
    def __init__(self, *workers: FakeWorker, **more: Any) -> None:
        self.rpc, self.directory = FakeRpc(), FakeDirectory()
        self.dispatch = Dispatch(self.directory, random.Random(5))
        self.asking = Workers(self.rpc, self.dispatch, **more)
        for number, worker in enumerate(workers):
            self.rpc.workers[node_id(number)] = worker
            # The first is the least loaded, so it is asked first.
            self.directory.worker(number, "m", load=WorkerLoad(slots=8, running=number))

    async def text(self) -> str:
        """Return the answer's text, with a period for its end."""
        async with aclosing(generated(self.asking, PROMPT, WISH, seconds=10)) as answers:
            items = [answer async for answer in answers]
        return "".join(
            "." if isinstance(answer, GenerationEnd) else answer.text for answer in items if not isinstance(answer, PromptAccepted)
        )


@pytest.mark.parametrize("error", [errors.LinkLost, errors.NotReachable, errors.Draining, errors.Overloaded, errors.ModelCrashed])
async def test_another_worker_takes_over_before_the_first_token(error: type[errors.AimeshError]) -> None:
    broken, good = FakeWorker(fails_with=error("x")), FakeWorker()
    harness = WorkersHarness(broken, good)
    assert await harness.text() == "Hello world!."
    assert (len(broken.received), len(good.received)) == (1, 1)
    assert harness.dispatch.in_flight == 0
    arrived = harness.dispatch._metrics.model_requests.labels(model="m", result="arrived")
    assert arrived._value.get() == 1, "a retried request has arrived once"


async def test_after_three_attempts_the_last_error_is_returned() -> None:
    workers = [FakeWorker(fails_with=errors.Unavailable(f"{number}")) for number in range(5)]
    harness = WorkersHarness(*workers)
    with pytest.raises(errors.Unavailable):
        await harness.text()
    assert sum(len(worker.received) for worker in workers) == 3
    assert max(len(worker.received) for worker in workers) == 1


async def test_a_request_that_crashed_two_engines_gets_no_third() -> None:
    workers = [FakeWorker(fails_with=errors.ModelCrashed(f"{number}")) for number in range(5)]
    with pytest.raises(errors.Poison, match="twice"):
        await WorkersHarness(*workers).text()
    assert sum(len(worker.received) for worker in workers) == 2


async def test_another_worker_is_tried_if_one_fails_to_load_the_model() -> None:
    class Loading(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            yield inference.Chunk("", (), waiting="loading smollm2: 40 %")
            raise errors.Unavailable("no memory")

    cold, warm = Loading(), FakeWorker()
    assert await WorkersHarness(cold, warm).text() == "Hello world!."
    assert (len(cold.received), len(warm.received)) == (1, 1)


async def test_a_single_worker_is_not_retried() -> None:
    alone = FakeWorker(fails_with=errors.Overloaded("full"))
    with pytest.raises(errors.Overloaded, match="full"):
        await WorkersHarness(alone).text()
    assert len(alone.received) == 1


async def test_without_a_digest_an_answer_is_not_resumed_after_the_first_token() -> None:
    broken, other = FakeWorker(fails_with=errors.LinkLost("gone"), fails_after=1), FakeWorker()
    with pytest.raises(errors.WorkerLost, match="gone"):
        await WorkersHarness(broken, other).text()
    assert not other.received


@pytest.mark.parametrize("error", [errors.BadRequest, errors.DeadlineExceeded])
async def test_errors_that_every_worker_would_return_are_not_retried(error: type[errors.AimeshError]) -> None:
    workers = [FakeWorker(fails_with=error("x")), FakeWorker(fails_with=error("x"))]
    with pytest.raises(error):
        await WorkersHarness(*workers).text()
    assert sum(len(worker.received) for worker in workers) == 1


async def test_a_tenants_share_is_charged_for_what_its_worker_has_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, int]] = []
    monkeypatch.setattr(Claim, "record_tokens", lambda _claim, *tokens: recorded.append(tokens))
    await WorkersHarness(FakeWorker()).text()
    with pytest.raises(errors.WorkerLost):
        await WorkersHarness(FakeWorker(fails_with=errors.LinkLost("gone"), fails_after=1)).text()
    assert recorded == [(7, 3), (7, 1)]


async def test_no_worker() -> None:
    with pytest.raises(errors.NotReachable, match="no worker can run m now"):
        await WorkersHarness().text()


async def test_closing_the_stream_early_cancels_the_work_on_the_worker() -> None:
    worker = FakeWorker()
    harness = WorkersHarness(worker)
    async with aclosing(generated(harness.asking, PROMPT, WISH, seconds=10)) as answers:
        await anext(answers)
        assert harness.dispatch.in_flight == 1
    assert worker.left_early == 1
    assert harness.dispatch.in_flight == 0


def test_a_request_that_has_waited_reaches_no_worker_that_may_no_longer_see_it() -> None:
    """The worker announces it between the choice and the call."""

    async def run() -> None:
        alone = FakeWorker()
        harness = WorkersHarness(alone, clock=asyncio.get_running_loop().time)
        harness.directory.worker(0, "m", load=WorkerLoad(slots=1))
        running, next_one = harness.dispatch.claim_now(WISH), harness.dispatch.claim_now(WISH)
        assert running is not None
        assert next_one is not None
        with next_one, running:
            waiting = asyncio.create_task(harness.text())
            await pass_time(0.1)
            assert harness.dispatch.waiting == 1
        harness.directory.worker(0, "m", load=WorkerLoad(slots=1), labels={"shared": "no"})
        with pytest.raises(errors.NotReachable):
            await waiting
        assert not alone.received

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


# --- lost workers ---------------------------------------------------------------------------------------------------------


class Dying(FakeWorker):
    """A worker whose whole process ends, before or after its first word; the directory learns of it when the link ends."""

    def __init__(self, harness_of: "list[WorkersHarness]", number: int, *, after: int = 0, error: errors.LinkLost | None = None) -> None:
        super().__init__()
        self._harness_of, self._number, self._after = harness_of, number, after
        self._error = error or errors.LinkLost("gone")

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        for position in range(self._after):
            yield inference.Chunk("x", (position + 1,))
        (harness,) = self._harness_of
        harness.directory.mark_gone(node_id(self._number), "the link ended")
        raise self._error


def dying(count: int, **more: int) -> WorkersHarness:
    holder: list[WorkersHarness] = []
    holder.append(WorkersHarness(*(Dying(holder, number, **more) for number in range(count))))
    return holder[0]


async def test_a_request_that_crashed_two_workers_gets_no_third() -> None:
    harness = dying(4)
    with pytest.raises(errors.Poison, match="two workers were lost"):
        await harness.text()
    assert sum(len(worker.received) for worker in harness.rpc.workers.values()) == 2
    assert harness.dispatch.in_flight == 0


async def test_while_workers_die_that_did_not_run_it_a_request_is_not_blamed_and_gets_no_third() -> None:
    """It may be what ends workers all the same: in a chaos run, one got a third because of a worker lost half a minute before."""
    holder: list[WorkersHarness] = []
    holder.append(harness := WorkersHarness(*(Dying(holder, number) for number in range(3)), FakeWorker()))
    harness.directory.mark_gone(node_id(3), "silent for 6 s")
    with pytest.raises(errors.WorkerLost, match="not be given to a third"):
        await harness.text()
    assert sum(len(worker.received) for worker in harness.rpc.workers.values()) == 2


@pytest.mark.parametrize("reason", ["", "its user logged out"])
async def test_a_worker_that_stops_in_order_does_not_excuse_a_request(reason: str) -> None:
    holder: list[WorkersHarness] = []
    holder.append(harness := WorkersHarness(*(Dying(holder, number) for number in range(3)), FakeWorker()))
    entry = harness.directory.find(node_id(3))
    assert entry is not None
    harness.directory.apply_announcement(msgspec.structs.replace(entry.announcement, leaving=True, leave_reason=reason), "nats")
    with pytest.raises(errors.Poison, match="two workers were lost"):
        await harness.text()


class Twin(FakeWorker):
    """A worker that shares its key with another process: the directory gets announcements of both in turn, and its links break."""

    def __init__(self, harness_of: "list[WorkersHarness]", number: int) -> None:
        super().__init__()
        self._harness_of, self._number = harness_of, number

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        (harness,) = self._harness_of
        entry = harness.directory.find(node_id(self._number))
        assert entry is not None
        younger = msgspec.structs.replace(entry.announcement, started_at=entry.announcement.started_at + timedelta(seconds=1))
        harness.directory.apply_announcement(younger, "nats")
        raise errors.LinkLost("two processes with one key have answered")
        yield  # makes it a generator


async def test_links_that_break_because_two_processes_share_a_key_are_never_poison() -> None:
    holder: list[WorkersHarness] = []
    holder.append(WorkersHarness(*(Twin(holder, number) for number in range(4))))
    with pytest.raises(errors.PeerError) as caught:
        await holder[0].text()
    assert caught.value.status == 503


async def test_two_lost_links_to_live_workers_are_not_poison() -> None:
    workers = [FakeWorker(fails_with=errors.LinkLost(f"{number}")) for number in range(2)]
    assert await WorkersHarness(*workers, FakeWorker()).text() == "Hello world!."


@pytest.mark.parametrize(
    ("heard", "lost_workers", "poison"),
    [
        pytest.param((True, True), 1, True, id="both had responded"),
        pytest.param((False, False), 1, True, id="both ended without a response"),
        pytest.param((False, True), 1, True, id="the first ended without a response"),
        pytest.param((True, False), 1, False, id="the second may have been unreachable before, as in a split mesh"),
        pytest.param((True, True), 0, False, id="the first still runs: only its link was lost"),
    ],
)
def test_which_lost_workers_make_a_request_poison(heard: tuple[bool, bool], lost_workers: int, poison: bool) -> None:
    core = Generation(generation.PROMPT, WISH, ends_at=10, answers=1)
    steps = []
    for number, was_heard in enumerate(heard):
        core.claimed("d", now=0)
        lost = errors.LinkLost("gone")
        steps.append(core.failed(node_id(number), lost, was_accepted=was_heard, lost_workers=lost_workers * number))
    assert steps[0] == FindWorker(frozenset({node_id(0)}), why="retry", is_charged=True)
    assert isinstance(steps[1], Failed) == poison
    if isinstance(steps[1], Failed):
        assert (steps[1].error.code, steps[1].error.status) == ("poison", 400)


@pytest.mark.parametrize(
    ("further", "poison"), [pytest.param(1, False, id="got further"), pytest.param(0, True, id="died at the same place")]
)
def test_a_worker_that_got_past_the_place_of_the_first_loss_clears_a_request(further: int, poison: bool) -> None:
    core = Generation(generation.PROMPT, WISH, ends_at=10, answers=1)
    steps = []
    for number, tokens in enumerate((1, further)):
        core.claimed("d", now=0)
        for _ in range(tokens):
            core.item(inference.Chunk("x", (7,)))
        steps.append(core.failed(node_id(number), errors.LinkLost("gone"), was_accepted=True, lost_workers=number))
    assert steps[0] == FindWorker(frozenset({node_id(0)}), ResumeOrigin("d", ""), "resumption", is_charged=True)
    assert isinstance(steps[1], Failed) == poison


async def test_workers_lost_behind_a_silent_transport_do_not_make_a_request_poison() -> None:
    silent = errors.TransportLost("the NATS server has been silent for 3.0 s")
    holder: list[WorkersHarness] = []
    holder.append(WorkersHarness(*(Dying(holder, number, error=silent) for number in range(2)), FakeWorker()))
    assert await holder[0].text() == "Hello world!."
    assert sum(not entry.alive for entry in holder[0].directory.entries()) == 2


# --- our own connection to NATS -------------------------------------------------------------------------------------------

LOST = errors.TransportLost("the connection to the NATS server was lost")


class Away:
    """Our own connection, and the workers behind it, in virtual time."""

    def __init__(self, *workers: FakeWorker, **more: Any) -> None:
        self.back_at = -math.inf
        clock = asyncio.get_running_loop().time
        self.harness = WorkersHarness(*workers, clock=clock, draw=lambda: 0.5, back_at=lambda: self.back_at)
        self.harness.dispatch = self.harness.asking.dispatch = Dispatch(
            self.harness.directory, random.Random(5), QueueSettings(**more), clock=clock
        )

    def lose(self) -> None:
        self.back_at = math.inf
        self.harness.directory.transport_lost("nats")

    def regain(self) -> None:
        self.back_at = asyncio.get_running_loop().time()
        self.harness.directory.transport_back("nats")

    def hear(self, number: int) -> None:
        entry = self.harness.directory.find(node_id(number))
        assert entry is not None
        self.harness.directory.apply_announcement(entry.announcement, "nats")

    @property
    def has_blamed(self) -> bool:
        budget, stats = self.harness.asking.budget, self.harness.dispatch.worker_stats
        return bool(stats.outliers.records) or budget._retries.total(0.0) > 0


class Losing(FakeWorker):
    """Our own connection is lost while it runs a request, the first so many times."""

    away: Away
    times = 1

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        if len(self.received) <= self.times:
            self.away.lose()
            raise LOST
        async for item in super().run(prompt):
            yield item


def in_virtual_time(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


def test_a_request_waits_until_our_own_connection_is_back_and_the_worker_is_heard() -> None:
    async def story() -> None:
        worker = FakeWorker()
        away = Away(worker)
        away.lose()
        asked = asyncio.create_task(away.harness.text())
        await pass_time(20)
        away.regain()
        await pass_time(2)
        assert not worker.received, "it may not be back yet"
        away.hear(0)
        assert await asked == "Hello world!."
        assert not away.has_blamed

    in_virtual_time(story)


def test_a_request_waits_no_longer_than_in_the_queue_and_learns_why() -> None:
    async def story() -> None:
        away = Away(FakeWorker(), queue_seconds=7)
        away.lose()
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.Overloaded, match="this gateway has lost its connection to NATS"):
            await away.harness.text()
        assert asyncio.get_running_loop().time() - began == pytest.approx(7, abs=0.2)

    in_virtual_time(story)


def test_only_a_full_queue_refuses_while_our_own_connection_is_lost() -> None:
    async def story() -> None:
        away = Away(FakeWorker(), queue_most=5)
        # Each answer takes a minute, so one slot would be too few for five within 30 s.
        away.harness.dispatch.model_queue(WISH.model).mean_seconds = 60
        away.lose()
        waiting = [asyncio.create_task(away.harness.text()) for _ in range(5)]
        await pass_time(1)
        with pytest.raises(errors.Overloaded, match="5 requests are already queued"):
            await away.harness.text()
        away.regain()
        away.hear(0)
        assert await asyncio.gather(*waiting) == ["Hello world!."] * 5

    in_virtual_time(story)


@pytest.mark.parametrize("times", [1, 5])
def test_the_loss_of_our_own_connection_counts_as_no_attempt_and_no_failure(times: int) -> None:
    async def story() -> None:
        worker = Losing()
        away = worker.away = Away(worker)
        worker.times = times
        asked = asyncio.create_task(away.harness.text())
        for _ in range(times):
            await pass_time(1)
            away.regain()
            away.hear(0)
        assert await asked == "Hello world!."
        assert len(worker.received) == times + 1
        assert not away.has_blamed

    in_virtual_time(story)


def test_the_first_wait_counts_from_the_return_of_our_own_connection() -> None:
    async def story() -> None:
        worker = Losing()
        away = worker.away = Away(worker)
        asked = asyncio.create_task(away.harness.text())
        await pass_time(1)
        away.harness.directory.mark_gone(node_id(0), "silent for 6 s")
        await pass_time(5)
        away.regain()
        began = asyncio.get_running_loop().time()
        with pytest.raises(errors.LinkLost, match="was lost"):
            await asked
        assert asyncio.get_running_loop().time() - began == pytest.approx(generation.FIRST_WAIT_SECONDS, abs=1)

    in_virtual_time(story)


def test_a_request_that_finds_another_model_does_not_wait_for_our_own_connection() -> None:
    async def story() -> None:
        away = Away(FakeWorker())
        away.lose()
        with pytest.raises(errors.NotConnected):
            await away.harness.asking.generate(PROMPT, msgspec.structs.replace(WISH, has_alternative=True), 10, Reader())

    in_virtual_time(story)


@pytest.mark.parametrize(
    ("began", "was_accepted", "since", "counts_as"),
    [
        pytest.param(False, False, 2.9, errors.NotReachable, id="not accepted, just back"),
        pytest.param(False, False, 3.1, errors.LinkLost, id="not accepted, long back"),
        pytest.param(True, False, 19.9, errors.NotReachable, id="not accepted, to be resumed"),
        pytest.param(True, False, 20.1, errors.LinkLost, id="not accepted, to be resumed, long back"),
        pytest.param(False, True, 0.1, errors.LinkLost, id="accepted"),
        pytest.param(False, False, math.inf, errors.LinkLost, id="never lost"),
    ],
)
def test_a_link_that_is_lost_soon_after_our_own_connection(
    began: bool, was_accepted: bool, since: float, counts_as: type[errors.AimeshError]
) -> None:
    core = Generation(generation.PROMPT, WISH, ends_at=100, answers=1)
    core.claimed("d", now=0)
    if began:
        core.item(inference.Chunk("x", (7,)))
        core.claimed("d", now=0)
    judged = core.judge(errors.LinkLost("gone"), was_accepted=was_accepted, now=50, back_at=50 - since)
    assert type(judged) is counts_as
    # One that had accepted it counts for the poison rule as ever.
    core.failed(node_id(0), judged, was_accepted=was_accepted)
    assert len(core._losses) == (counts_as is errors.LinkLost)


# --- dishonest workers ----------------------------------------------------------------------------------------------------


class MiscountingWorker(FakeWorker):
    """A worker that generates the right tokens but reports other numbers."""

    def __init__(self, claims: int, *, prompt: int = 7) -> None:
        super().__init__(words=("x",) * 10)
        self._usage = Usage(prompt, claims)

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        async for item in super().run(prompt):
            yield GenerationEnd(FinishReason.STOP, self._usage) if isinstance(item, GenerationEnd) else item


@pytest.mark.parametrize("claims", [12, 100, -1, 2**63])
async def test_a_worker_with_wrong_token_counts_gets_no_fourth_request(claims: int) -> None:
    liar, honest = MiscountingWorker(claims), FakeWorker()
    flagged: list[NodeId] = []
    harness = WorkersHarness(liar, honest, flag=flagged.append)
    for _ in range(10):
        await harness.text()
    assert (len(liar.received), flagged) == (worker_records.STRIKES, [node_id(0)] * worker_records.STRIKES)
    assert len(honest.received) == 7


@pytest.mark.parametrize("prompt", [-5, 2**63])
async def test_a_worker_with_an_impossible_prompt_count_is_flagged(prompt: int) -> None:
    harness = WorkersHarness(MiscountingWorker(10, prompt=prompt), FakeWorker())
    for _ in range(5):
        await harness.text()
    assert len(harness.rpc.workers[node_id(0)].received) == worker_records.STRIKES


async def test_the_quarantine_of_the_last_worker_is_named_in_the_error() -> None:
    harness = WorkersHarness(MiscountingWorker(100))
    for _ in range(worker_records.STRIKES):
        assert await harness.text() == "x" * 10 + "."
    with pytest.raises(errors.NotReachable, match="in quarantine"):
        await harness.text()


async def test_a_worker_with_correct_counts_is_never_flagged() -> None:
    flagged: list[NodeId] = []
    harness = WorkersHarness(FakeWorker(), flag=flagged.append)
    for _ in range(20):
        await harness.text()
    assert not flagged
