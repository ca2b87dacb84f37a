"""The `llama` backend with memory for one model: how often models are loaded, and what people are told of it."""

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.inference.backend_interface import WarningTopic
from services.inference.backends import model_cache
from services.inference.backends.llama import LlamaBackend
from shared.api.inference import Chunk
from shared.types import ModelName
from tests.services.inference.backends.test_model_cache import A, B, C, Site
from tests.services.inference.standins import Reader, job, until


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(model_cache, "PROGRESS_SECONDS", 0.001)
    monkeypatch.setattr(model_cache, "TICK_SECONDS", 0.002)
    site, looks = Site(tmp_path), itertools.count()

    def monotonic() -> float:
        """Time passes with each look at the clock, and by 0.1 s at the end of each load."""
        return next(looks) / 1000 + sum(engine.loaded is not None for engine in site.engines) / 10

    monkeypatch.setattr(model_cache, "time", SimpleNamespace(monotonic=monotonic))
    return site


async def run_streams(site: Site, backend: LlamaBackend, requests: int) -> None:
    """Run three callers, one per model, who send one request after the other. Loads and answers take longer than a caller's pause."""
    callers = {A, B, C}

    def count_waiting() -> int:
        return len(backend._cache._callers)

    async def load() -> None:
        while callers:
            site.may_load.clear()
            await until(lambda: count_waiting() >= len(callers))
            site.may_load.set()
            await until(lambda: count_waiting() < len(callers) or not callers)

    class PatientReader(Reader):
        async def send(self, item: Chunk) -> None:
            if not item.waiting:
                await until(lambda: count_waiting() >= len(callers) - 1)

    async def send(model: ModelName) -> None:
        for _ in range(requests):
            await backend.generate(job(model=model), PatientReader())
        callers.discard(model)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load())
        for model in (A, B, C):
            tasks.create_task(send(model))


@pytest.mark.parametrize(("swap_seconds", "fewest", "most"), [(0.0, 60, 60), (30.0, 3, 8)])
async def test_sixty_mixed_requests(site: Site, swap_seconds: float, fewest: int, most: int) -> None:
    async with site.backend(*map(site.entry, (A, B, C)), budget=4, swap_seconds=swap_seconds) as backend:
        await run_streams(site, backend, 20)
        assert fewest <= len(site.engines) <= most
        assert sum(engine.answered for engine in site.engines) == 60
        assert len(site.watch.swaps) == len(site.engines) - 1


async def test_frequent_swaps_are_reported(site: Site) -> None:
    async with site.backend(*map(site.entry, (A, B, C)), budget=4) as backend:
        await run_streams(site, backend, 10)
        await until(lambda: site.watch.warnings.get(WarningTopic.SWAPS))
    why = "swapped more than 6 times in 10 minutes, because the models of this worker share"
    assert site.watch.warnings[WarningTopic.SWAPS].startswith(f"a, b, c: {why}")
