"""Which replica gets a job, and what they take together."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.backends.llama import LlamaBackend
from services.inference.backends.model_cache import MAX_PREFIXES, Replica
from tests.services.inference.backends.test_model_cache import A, FakeEngine, Site
from tests.services.inference.standins import Reader, job, until

LONG = "The first page of a long manual, with all that it says. " * 40


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def ask(backend: LlamaBackend, question: str, *, salt: str = "tenant") -> None:
    await backend.generate(replace(job(question, model=A), salt=salt), Reader())


def answered(site: Site) -> list[int]:
    return [engine.answered for engine in site.engines]


async def test_prompt_goes_where_its_beginning_was_read(site: Site) -> None:
    async with site.backend(site.entry(A, replicas=2, slots=4)) as backend:
        await ask(backend, LONG)
        before = answered(site)
        assert sorted(before) == [0, 1]
        site.may_answer.clear()
        async with asyncio.TaskGroup() as tasks:
            # Another prompt occupies the first replica, which is then the busier one.
            tasks.create_task(ask(backend, LONG + "one"))
            await until(lambda: max(answered(site)) == 2)
            tasks.create_task(ask(backend, LONG + "two"))
            await until(lambda: max(answered(site)) == 3)
            site.may_answer.set()
        assert sorted(answered(site)) == [0, 3]


async def test_shared_page_does_not_overload_one_replica(site: Site) -> None:
    async with site.backend(site.entry(A, replicas=2, slots=4)) as backend:
        site.may_answer.clear()
        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(ask(backend, LONG + str(number)))
            await until(lambda: sum(answered(site)) == 8)
            site.may_answer.set()
        assert sorted(answered(site)) in ([3, 5], [4, 4])


@pytest.mark.parametrize(("second", "salt"), [(LONG, "other"), (LONG, ""), ("Another beginning. " * 80, "tenant")])
async def test_other_tenants_and_beginnings_go_to_the_least_busy(site: Site, second: str, salt: str) -> None:
    async with site.backend(site.entry(A, replicas=2, slots=4)) as backend:
        site.may_answer.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(backend, LONG))
            await until(lambda: sum(answered(site)) == 1)
            tasks.create_task(ask(backend, second, salt=salt))
            await until(lambda: sum(answered(site)) == 2)
            site.may_answer.set()
        assert answered(site) == [1, 1]


async def test_gpus_get_a_replica_each(site: Site) -> None:
    site.gpus = (2**30, 2**30)
    async with site.backend(site.entry(A, replicas=None, memory_bytes=None), budget=2**30) as backend:
        await ask(backend, "hello")
        assert [engine.load.device for engine in site.engines] == [0, 1]
        assert backend.models()[0].slots == 4


async def test_few_prefixes_are_remembered(site: Site) -> None:
    replica = Replica(FakeEngine.__new__(FakeEngine))
    with replica.counted([number.to_bytes(4, "big") for number in range(MAX_PREFIXES + 7)]):
        assert replica.jobs == 1
    assert replica.jobs == 0
    assert len(replica.prefixes) == MAX_PREFIXES
    assert replica.known([(3).to_bytes(4, "big")]) == 0
    assert replica.known([(7).to_bytes(4, "big"), b"unknown"]) == 1


@pytest.mark.parametrize(("gpus", "planned"), [((2**40,), 8), ((), 0)])
async def test_replicas_show_the_gpu_memory_that_their_plan_takes(site: Site, gpus: tuple[int, ...], planned: int) -> None:
    site.gpus = gpus
    async with site.backend(site.entry(A, replicas=2), budget=2**40) as backend:
        assert backend.figures(A).vram_bytes == 0
        await ask(backend, "hi")
        assert backend.figures(A).vram_bytes == planned
        await backend.unload(A)
        await until(lambda: backend.figures(A).vram_bytes == 0)
