"""Models that nobody trusted has signed, in a worker whose engines a test controls."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.backend_interface import WarningTopic
from services.inference.models.catalog import CatalogEntry
from shared import errors
from shared.api.inference import ModelState
from shared.models.trust_rules import TRUSTED, Distrust, Verdict
from tests.services.inference.backends import test_model_cache as cache_tests
from tests.services.inference.backends.test_model_cache import GENERATION, A, B, Site, generate, states
from tests.services.inference.standins import Reader, job, until
from tests.shared.models.publishers import version_of

site = cache_tests.site
REFUSED = Verdict(Distrust.UNSIGNED, "nobody has signed it", is_refused=True)
WARNED = replace(REFUSED, is_refused=False)


def distrust(site: Site, verdict: Verdict) -> None:
    """Judge the model A so, and trust others."""
    site.judge = lambda entry, hashes: verdict if entry.name == A else TRUSTED


@pytest.mark.parametrize("preload", [False, True])
async def test_a_refused_model_is_not_loaded_and_says_why(site: Site, preload: bool) -> None:
    distrust(site, REFUSED)
    async with site.backend(site.entry(A, preload=preload), site.entry(B)) as backend:
        await until(lambda: states(backend) == {A: ModelState.FAILED, B: ModelState.UNLOADED})
        status = backend.models()[0]
        assert (status.detail, status.distrust) == (REFUSED.reason, "unsigned")
        for ask in (lambda: generate(backend, A), lambda: backend.load(A, pin=True)):
            with pytest.raises(errors.Unavailable, match="a cannot be served here: nobody has signed it"):
                await ask()
        await generate(backend, B)
        assert site.names == ["b"]
        await until(lambda: site.watch.warnings.get(WarningTopic.TRUST) == "a: nobody has signed it")
        # Somebody signs it.
        distrust(site, TRUSTED)
        await generate(backend, A)
        await until(lambda: not site.watch.warnings[WarningTopic.TRUST])
        assert backend.models()[0].distrust == ""


async def test_a_model_is_loaded_with_a_warning(site: Site) -> None:
    distrust(site, WARNED)
    async with site.backend(site.entry(A)) as backend:
        await generate(backend, A)
        await until(lambda: site.watch.warnings.get(WarningTopic.TRUST) == "a: nobody has signed it")
        assert (states(backend)[A], backend.models()[0].distrust) == (ModelState.READY, "unsigned")


async def test_a_model_that_is_not_trusted_any_more_is_unloaded_after_its_running_answer(site: Site) -> None:
    async with site.backend(site.entry(A, pinned=True)) as backend:
        await generate(backend, A)
        site.may_answer.clear()
        running = asyncio.create_task(backend.generate(job(model=A), Reader()))
        await until(lambda: len(site.jobs) == 2)
        distrust(site, REFUSED)
        await until(lambda: states(backend) == {A: ModelState.FAILED})
        with pytest.raises(errors.Unavailable, match="nobody has signed it"):
            await generate(backend, A)
        assert site.running
        site.may_answer.set()
        assert await running == GENERATION
        await until(lambda: not site.running)
        # It comes back when it is trusted again.
        distrust(site, TRUSTED)
        await generate(backend, A)
        assert len(site.engines) == 2


async def test_a_caller_that_waits_for_a_refused_model_hears_why(site: Site) -> None:
    """Its model was unloaded for another one, and is refused before its turn."""
    async with site.backend(site.entry(A, memory_bytes=8), site.entry(B, memory_bytes=8)) as backend:
        site.may_answer.clear()
        first = asyncio.create_task(generate(backend, B))
        await until(lambda: site.jobs)
        waiting = asyncio.create_task(generate(backend, A))
        await until(lambda: backend.models()[0].running)
        distrust(site, REFUSED)
        site.may_answer.set()
        await first
        with pytest.raises(errors.Unavailable, match=r"a cannot be (loaded on this worker|served here): nobody has signed it"):
            await waiting
        assert site.names == ["b"]
        distrust(site, TRUSTED)
        await backend.load(A)
        assert states(backend)[A] is ModelState.READY


async def test_a_version_is_judged_by_the_files_that_are_loaded(site: Site, tmp_path: Path) -> None:
    judged = list[tuple[str, ...]]()

    def judge(entry: CatalogEntry, hashes: tuple[str, ...]) -> Verdict:
        judged.append(hashes)
        return TRUSTED if hashes else REFUSED

    site.judge = judge
    content = site.entry(A).file.read_bytes()
    entry = site.entry(A, version=version_of({"a.gguf": content}))
    digest = entry.version.files[0].digest.removeprefix("sha256:") if entry.version else ""
    async with site.backend(replace(entry, digest=digest)) as backend:
        await generate(backend, A)
        assert judged[-1] == (digest,)
