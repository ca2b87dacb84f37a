import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from services.gateway.placing.dispatch import Dispatch
from services.gateway.placing.routing import Wish
from services.gateway.relaying.relay import Relay
from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, Generation
from shared.api.inference import Accepted
from shared.directory import Load
from shared.types import ModelName, RequestId
from tests.services.gateway.fakes import USER, FakeDirectory, FakeRpc, FakeWorker, node_id

PROMPT = inference.ProcessPrompt((ChatMessage("user", "hi"),), inference.ModelConfig(model=ModelName("m")), RequestId(node_id))  # type: ignore[arg-type]

WISH = Wish(ModelName("m"), USER, prompt_tokens=1, max_tokens=10)


class Site:
    def __init__(self, *workers: FakeWorker) -> None:
        self.rpc, self.directory = FakeRpc(), FakeDirectory()
        self.dispatch = Dispatch(self.directory, random.Random(5))
        self.relay = Relay(self.rpc, self.dispatch)
        for number, worker in enumerate(workers):
            self.rpc.workers[node_id(number)] = worker
            # The first is the least loaded, so it is asked first.
            self.directory.worker(number, "m", load=Load(slots=8, running=number))

    async def text(self) -> str:
        """Its texts, and a point for its end."""
        async with aclosing(self.relay.generate(PROMPT, WISH, seconds=10)) as answers:
            said = [answer async for answer in answers]
        return "".join("." if isinstance(answer, Generation) else answer.text for answer in said if not isinstance(answer, Accepted))


@pytest.mark.parametrize("error", [errors.LinkLost, errors.NotReachable, errors.Draining, errors.Overloaded, errors.ModelCrashed])
async def test_before_its_first_token_another_worker_takes_over(error: type[errors.AimeshError]) -> None:
    broken, good = FakeWorker(fails_with=error("x")), FakeWorker()
    site = Site(broken, good)
    assert await site.text() == "Hello world!."
    assert (len(broken.asked), len(good.asked)) == (1, 1)
    assert site.dispatch.in_flight == 0


async def test_three_attempts_and_then_the_last_error() -> None:
    workers = [FakeWorker(fails_with=errors.Unavailable(f"{number}")) for number in range(5)]
    site = Site(*workers)
    with pytest.raises(errors.Unavailable):
        await site.text()
    assert sum(len(worker.asked) for worker in workers) == 3
    assert max(len(worker.asked) for worker in workers) == 1


async def test_a_request_that_ended_two_engines_meets_no_third() -> None:
    workers = [FakeWorker(fails_with=errors.ModelCrashed(f"{number}")) for number in range(5)]
    with pytest.raises(errors.Poison, match="twice"):
        await Site(*workers).text()
    assert sum(len(worker.asked) for worker in workers) == 2


async def test_a_worker_that_could_not_load_its_model_after_all_gives_way_to_another() -> None:
    class Loading(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
            yield inference.Chunk("", (), waiting="loading smollm2: 40 %")
            raise errors.Unavailable("no memory")

    cold, warm = Loading(), FakeWorker()
    assert await Site(cold, warm).text() == "Hello world!."
    assert (len(cold.asked), len(warm.asked)) == (1, 1)


async def test_one_worker_alone_is_not_asked_again() -> None:
    alone = FakeWorker(fails_with=errors.Overloaded("full"))
    with pytest.raises(errors.Overloaded):
        await Site(alone).text()
    assert len(alone.asked) == 1


async def test_after_the_first_token_a_model_without_a_digest_is_not_gone_on_with() -> None:
    broken, other = FakeWorker(fails_with=errors.LinkLost("gone"), fails_after=1), FakeWorker()
    with pytest.raises(errors.WorkerLost, match="gone"):
        await Site(broken, other).text()
    assert not other.asked


@pytest.mark.parametrize("error", [errors.BadRequest, errors.DeadlineExceeded])
async def test_what_another_worker_would_say_too_is_not_tried_again(error: type[errors.AimeshError]) -> None:
    workers = [FakeWorker(fails_with=error("x")), FakeWorker(fails_with=error("x"))]
    with pytest.raises(error):
        await Site(*workers).text()
    assert sum(len(worker.asked) for worker in workers) == 1


async def test_nobody_there() -> None:
    with pytest.raises(errors.NotReachable):
        await Site().text()


async def test_leaving_early_leaves_the_worker() -> None:
    worker = FakeWorker()
    site = Site(worker)
    async with aclosing(site.relay.generate(PROMPT, WISH, seconds=10)) as answers:
        await anext(answers)
        assert site.dispatch.in_flight == 1
    assert worker.left_early == 1
    assert site.dispatch.in_flight == 0
