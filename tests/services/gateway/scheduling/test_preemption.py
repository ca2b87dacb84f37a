"""One tenant holds every slot, and another one's request gets an answer soon; over the real ``Workers``, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from services.gateway.facts.placements import ANYWHERE
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.requests.workers import Workers
from services.gateway.scheduling import preemption
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.queue_sharing import QueueSharing
from services.gateway.scheduling.retry_budget import RetryBudget
from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk, PromptAccepted
from shared.context import new_request_id
from shared.protocol.directory import Announcement, ModelOffer, WorkerLoad
from shared.types import FinishReason, NodeId
from tests.services.gateway.fakes import FakeDirectory
from tests.services.gateway.pulled import generated
from tests.services.gateway.scheduling import mesh_in_virtual_time
from tests.services.gateway.scheduling.mesh_in_virtual_time import M, SharedLog, tenant
from tests.shared.timing.virtual_time import VirtualLoop, pass_time

TOKEN_SECONDS = 0.05
LONG, SHORT = 4000, 20
BAR_SECONDS = 5.0


class Worker(mesh_in_virtual_time.Worker):
    """Streams one token after another on ``slots`` slots; ``queue`` further calls may wait here."""

    def __init__(self, pool: "Pool", number: int, slots: int, queue: int) -> None:
        self._queue = queue
        super().__init__(pool, number, slots, distance_seconds=0.0)

    def _describe(self, load: WorkerLoad) -> Announcement:
        base = super()._describe(msgspec.structs.replace(load, queue=self._queue))
        return msgspec.structs.replace(base, models=(ModelOffer(M, 8192, "d" * 64),))


class Reply:
    """What ``RpcReply`` is to ``Workers``."""

    def __init__(self, worker: Worker, prompt: inference.ProcessPrompt) -> None:
        self._worker, self._prompt = worker, prompt
        self._items: asyncio.Queue[Chunk | GenerationEnd | errors.AimeshError] = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._generate())
        self.accepted: PromptAccepted | None = None
        self.end: GenerationEnd

    async def _generate(self) -> None:
        most = self._prompt.model_config.max_tokens
        assert most is not None
        await self._worker.take_slot()
        try:
            self.accepted = PromptAccepted(7)
            for position in range(len(self._prompt.delivered), most):
                await asyncio.sleep(TOKEN_SECONDS)
                finish = FinishReason.LENGTH if position == most - 1 else None
                self._items.put_nowait(Chunk(f" {position}", (position,), finish=finish))
            self._items.put_nowait(GenerationEnd(FinishReason.LENGTH, Usage(7, most - len(self._prompt.delivered))))
        finally:
            self._worker.free_slot()

    def cancel(self, error: errors.AimeshError) -> None:
        self._items.put_nowait(error)
        self._task.cancel()

    def close(self) -> None:
        self._task.cancel()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        while not isinstance(item := await self._items.get(), GenerationEnd):
            if isinstance(item, errors.AimeshError):
                raise item
            yield item
        self.end = item


@dataclass
class Gateway:
    directory: FakeDirectory
    asking: Workers
    is_killed: bool = False


@dataclass
class Answer:
    gateway: int
    #: When its first token came, from when it was asked for; None before.
    first_seconds: float | None = None
    tokens: list[int] = field(default_factory=list)
    error: errors.AimeshError | None = None
    #: What its tenant was charged by the worker's tokens: the pieces in which it ran.
    usage: Usage | None = None


class Pool:
    """``gateways`` in front of one pool of workers, and callers with endless patience."""

    def __init__(self, tasks: asyncio.TaskGroup, gateways: int, *, shares: bool) -> None:
        self.tasks, self.clock = tasks, asyncio.get_running_loop().time
        self.workers: dict[NodeId, Worker] = {}
        self.gateways: list[Gateway] = []
        #: Where each call ran.
        self.calls: list[NodeId] = []
        log = SharedLog()
        log.is_away = not shares
        for number in range(gateways):
            directory = FakeDirectory()
            dispatch = Dispatch(directory, random.Random(number), QueueSettings(), clock=self.clock, name=f"gateway{number}")
            tasks.create_task(QueueSharing(log, dispatch, f"gateway{number}").run())
            self.gateways.append(Gateway(directory, Workers(self, dispatch, clock=self.clock, budget=RetryBudget())))

    def add_worker(self, slots: int, queue: int = 0) -> None:
        worker = Worker(self, 100 + len(self.workers), slots, queue)
        self.workers[worker.node] = worker

    @asynccontextmanager
    async def stream(self, method: Any, request: Any, *, to: NodeId, deadline_seconds: float) -> AsyncIterator[Reply]:
        self.calls.append(to)
        reply = Reply(self.workers[to], request)
        try:
            yield reply
        finally:
            reply.close()

    def ask(self, at: int, of: int, tokens: int, *, seconds: float = 600, answers: int | None = None) -> Answer:
        answer = Answer(at)
        self.tasks.create_task(self._read(answer, of, tokens, seconds, answers))
        return answer

    async def _read(self, answer: Answer, of: int, tokens: int, seconds: float, answers: int | None) -> None:
        asked_at = self.clock()
        config = inference.ModelConfig(model=M, seed=5, max_tokens=tokens, n=answers)
        prompt = inference.ProcessPrompt("hi", config, new_request_id())
        requirements = WorkerRequirements(M, tenant(of), tenant(of), prompt_tokens=40, max_tokens=tokens, placement=ANYWHERE)
        try:
            async with aclosing(generated(self.gateways[answer.gateway].asking, prompt, requirements, seconds)) as items:
                async for item in items:
                    if isinstance(item, Chunk) and item.token_ids:
                        answer.tokens += item.token_ids
                        if answer.first_seconds is None:
                            answer.first_seconds = self.clock() - asked_at
                    elif isinstance(item, GenerationEnd):
                        answer.usage = item.usage
        except errors.AimeshError as error:
            answer.error = error


def run(script: Callable[[Pool], Awaitable[None]], gateways: int = 1, *, shares: bool = True) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            pool = Pool(tasks, gateways, shares=shares)
            try:
                await script(pool)
            finally:
                for task in tasks._tasks:  # the pool's and nobody else's
                    task.cancel()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def first_seconds(answer: Answer) -> float:
    assert answer.first_seconds is not None, answer.error
    return answer.first_seconds


@pytest.mark.parametrize("gateways", [1, 3])
@pytest.mark.parametrize(("workers", "slots", "queue"), [(1, 1, 0), (1, 4, 1), (2, 16, 8), (8, 32, 32)])
def test_a_tenant_that_holds_every_slot_soon_leaves_one_to_another(gateways: int, workers: int, slots: int, queue: int) -> None:
    async def script(pool: Pool) -> None:
        for _ in range(workers):
            pool.add_worker(slots, queue)
        for number in range(workers * slots + 2 * gateways):
            pool.ask(number % gateways, 1, LONG)
        await pass_time(1)
        others = [pool.ask(number % gateways, 2 + number, SHORT) for number in range(max(1, min(3, slots // 4)))]
        await pass_time(BAR_SECONDS)
        assert [other.error for other in others] == [None] * len(others)
        assert max(map(first_seconds, others)) <= BAR_SECONDS

    run(script, gateways)


def test_without_valkey_a_gateway_frees_a_slot_of_its_own() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(4)
        for _ in range(6):
            pool.ask(0, 1, LONG)
        await pass_time(1)
        other = pool.ask(0, 2, SHORT)
        await pass_time(BAR_SECONDS)
        assert first_seconds(other) <= BAR_SECONDS

    run(script, shares=False)


def test_the_youngest_answer_resumes_after_its_last_token_and_misses_none() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(2)
        old = pool.ask(0, 1, LONG)
        await pass_time(1)
        young = pool.ask(0, 1, LONG)
        await pass_time(1)
        pool.ask(0, 2, SHORT)
        await pass_time(preemption.WAIT_SECONDS + 1)
        assert len(young.tokens) < len(old.tokens) - 30, "the young one waits"
        await pass_time(LONG * TOKEN_SECONDS + 10)
        for answer in (old, young):
            assert answer.error is None
            assert answer.tokens == list(range(LONG))
            assert answer.usage is not None
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, LONG)
        assert len(pool.calls) == 4

    run(script)


def test_a_preempted_answer_is_its_tenants_next_one_but_not_before_other_tenants() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(2)
        pool.ask(0, 1, LONG)
        await pass_time(1)
        young = pool.ask(0, 1, 600)
        queued = [pool.ask(0, 1, LONG) for _ in range(3)]
        others = [pool.ask(0, 2, 100), pool.ask(0, 2, 100)]
        await pass_time(4)
        before = len(young.tokens)
        assert [bool(other.tokens) for other in others] == [True, False]
        await pass_time(8)
        assert all(other.tokens for other in others)
        assert len(young.tokens) > before
        assert not any(answer.tokens for answer in queued)

    run(script)


def test_answers_that_cannot_resume_are_left_alone() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(2)
        several = [pool.ask(0, 1, LONG, answers=2), pool.ask(0, 1, LONG, answers=2)]
        await pass_time(1)
        other = pool.ask(0, 2, SHORT)
        await pass_time(10)
        assert other.first_seconds is None
        assert [answer.error for answer in several] == [None, None]
        assert len(pool.calls) == 2

    run(script)


def test_an_answer_is_preempted_once_in_thirty_seconds() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(1)
        first = pool.ask(0, 1, LONG)
        await pass_time(1)
        second = pool.ask(0, 2, LONG)
        switches, current = 0, first
        for _ in range(int(120 / TOKEN_SECONDS)):
            before = len(second.tokens)
            await pass_time(TOKEN_SECONDS)
            now = second if len(second.tokens) > before else first
            switches, current = switches + (now is not current), now
        assert 3 <= switches <= 120 / preemption.PAUSE_SECONDS + 1
        assert first.error is second.error is None

    run(script)


def test_a_tenant_that_has_its_share_waits_for_its_turn() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(4)
        for of in (1, 2):
            for _ in range(2):
                pool.ask(0, of, LONG)
        await pass_time(1)
        for of in (1, 2):
            pool.ask(0, of, LONG)
        await pass_time(20)
        assert len(pool.calls) == 4

    run(script)


def test_tenants_with_whole_slots_near_their_share_do_not_take_them_from_each_other() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(8)
        for of, answers in ((1, 3), (2, 3), (3, 2)):
            for _ in range(answers):
                pool.ask(0, of, LONG)
        await pass_time(1)
        pool.ask(0, 3, LONG)
        await pass_time(20)
        assert len(pool.calls) == 8

    run(script)


def test_a_preempted_answer_waits_until_its_own_deadline() -> None:
    async def script(pool: Pool) -> None:
        pool.add_worker(1)
        first = pool.ask(0, 1, LONG, seconds=60, answers=None)
        await pass_time(1)
        # These can't resume, so the slot doesn't return.
        pool.ask(0, 2, LONG, answers=2)
        await pass_time(40)
        assert first.error is None
        await pass_time(20)
        assert isinstance(first.error, errors.DeadlineExceeded)

    run(script)
