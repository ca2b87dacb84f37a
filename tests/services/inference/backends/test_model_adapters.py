"""LoRA adapters in the `llama` backend: served as models, and loaded with their base model."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.backends.llama import LlamaBackend
from services.inference.engine import engine_messages
from services.inference.models.catalog import CatalogAdapter, CatalogEntry
from shared import errors
from shared.api.inference import ModelState, ModelStatus
from shared.types import ModelName
from tests import gguf_files
from tests.gguf_files import LlamaShape
from tests.services.inference.backends.test_model_cache import Site, generate, site
from tests.services.inference.standins import until
from tests.services.inference.vector_reader import VectorReader, texts_for

A, SQL, LAW = ModelName("a"), ModelName("a:sql"), ModelName("a:law")
SHAPE = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=64)
__all__ = ["site"]


def entry(folder: Path, *, scale: float = 1.0, preload: bool = False) -> CatalogEntry:
    """Return a model with two adapters. A test writes their files later."""
    gguf_files.write_llama(folder / "a.gguf", SHAPE, weights="q8_0", seed=1)
    adapters = (CatalogAdapter(SQL, folder / "sql.gguf", scale), CatalogAdapter(LAW, folder / "law.gguf"))
    return CatalogEntry(
        name=A, file=folder / "a.gguf", memory_bytes=4, slots=2, aliases=(ModelName("b"),), adapters=adapters, preload=preload
    )


def statuses(backend: LlamaBackend) -> dict[str, ModelStatus]:
    return {status.model_id: status for status in backend.models()}


async def test_an_adapter_is_a_model_with_its_own_digest(site: Site) -> None:
    for seed, name in enumerate(("sql", "law"), start=2):
        gguf_files.write_adapter(site.folder / f"{name}.gguf", SHAPE, seed=seed)
    async with site.backend(entry(site.folder)) as backend:
        await until(lambda: all(status.digest for status in backend.models()))
        base, sql, law = (statuses(backend)[name] for name in (A, SQL, LAW))
        assert (base.parent, sql.parent, law.parent) == (None, A, A)
        assert len({base.digest, sql.digest, law.digest}) == 3
        assert (sql.aliases, sql.slots, sql.state) == ((), 2, ModelState.UNLOADED)
        assert sql.context_tokens == base.context_tokens == 64
        await generate(backend, SQL)
        await generate(backend, A)
        assert (site.names, [job.adapter for job in site.jobs]) == (["a"], [1, 0])
        assert site.engines[0].load.adapters == (
            engine_messages.LoadedAdapter(str(site.folder / "sql.gguf"), 1.0),
            engine_messages.LoadedAdapter(str(site.folder / "law.gguf"), 1.0),
        )
    async with site.backend(entry(site.folder, scale=0.5)) as backend:
        await until(lambda: all(status.digest for status in backend.models()))
        again = statuses(backend)
        assert (again[A].digest, again[LAW].digest) == (base.digest, law.digest)
        assert again[SQL].digest not in (sql.digest, base.digest), "another scale gives other answers"


async def test_a_bad_adapter_fails_alone(site: Site) -> None:
    gguf_files.write_adapter(site.folder / "sql.gguf", replace(SHAPE, embedding=128), seed=2)
    gguf_files.write_adapter(site.folder / "law.gguf", SHAPE, seed=3)
    async with site.backend(entry(site.folder, preload=True)) as backend:
        await until(lambda: statuses(backend)[LAW].state is ModelState.READY)
        found = statuses(backend)
        assert (found[A].state, found[SQL].state) == (ModelState.READY, ModelState.FAILED)
        assert "it is for another model" in found[SQL].detail
        with pytest.raises(errors.Unavailable, match=r"a:sql cannot be served here: .*it is for another model"):
            await generate(backend, SQL)
        await generate(backend, LAW)
        assert [job.adapter for job in site.jobs] == [2]


async def test_what_the_engine_refuses_is_known_until_the_file_is_another(site: Site) -> None:
    for seed, name in enumerate(("sql", "law"), start=2):
        gguf_files.write_adapter(site.folder / f"{name}.gguf", SHAPE, seed=seed)
    site.adapter_problems = ("llama.cpp refused it", "")
    async with site.backend(entry(site.folder)) as backend:
        await backend.load(A)
        assert (statuses(backend)[SQL].state, statuses(backend)[SQL].detail) == (ModelState.FAILED, "llama.cpp refused it")
        await backend.unload(LAW)
        assert statuses(backend)[A].state is ModelState.UNLOADED
        assert statuses(backend)[SQL].state is ModelState.FAILED
        site.adapter_problems = ()
        gguf_files.write_adapter(site.folder / "sql.gguf", SHAPE, seed=9)
        assert (await backend.load(LAW)).model_id == LAW
        assert statuses(backend)[SQL].state is ModelState.READY
        await generate(backend, SQL)


async def test_an_adapter_is_checked_again_with_another_file_of_its_model(site: Site) -> None:
    gguf_files.write_adapter(site.folder / "sql.gguf", replace(SHAPE, embedding=128), seed=2)
    served = entry(site.folder)
    async with site.backend(served) as backend:
        await until(lambda: statuses(backend)[SQL].state is ModelState.FAILED)
        gguf_files.write_llama(served.file, replace(SHAPE, embedding=128), weights="q8_0", seed=1)
        await backend.load(A)
        assert (statuses(backend)[SQL].state, statuses(backend)[SQL].detail) == (ModelState.READY, "")


async def test_a_missing_adapter_and_a_missing_model(site: Site) -> None:
    gguf_files.write_adapter(site.folder / "law.gguf", SHAPE, seed=3)
    served = entry(site.folder)
    async with site.backend(served) as backend:
        await until(lambda: statuses(backend)[SQL].state is ModelState.FAILED)
        assert statuses(backend)[SQL].detail.endswith("sql.gguf: there is no such file")
        assert statuses(backend)[SQL].digest == ""
    served.file.unlink()
    async with site.backend(served) as backend:
        await until(lambda: {status.state for status in backend.models()} == {ModelState.FAILED})


async def test_adapters_compute_no_embeddings(site: Site) -> None:
    gguf_files.write_adapter(site.folder / "sql.gguf", SHAPE, seed=2)
    async with site.backend(entry(site.folder)) as backend:
        with pytest.raises(errors.BadRequest, match="a:sql is an adapter, which only generates text"):
            await backend.embed(texts_for(SQL, ("x",)), VectorReader())
        assert not site.engines


async def test_the_memory_of_adapters_counts(site: Site) -> None:
    gguf_files.write_adapter(site.folder / "sql.gguf", SHAPE, seed=2)
    size = (site.folder / "sql.gguf").stat().st_size
    served = entry(site.folder)
    served = CatalogEntry(name=A, file=served.file, slots=2, adapters=served.adapters[:1])
    alone = CatalogEntry(name=A, file=served.file, slots=2)
    needs = []
    for each in (alone, served):
        async with site.backend(each, budget=2**30) as backend:
            await backend.load(A)
            needs.append(statuses(backend)[A].memory_bytes)
    assert needs[1] - needs[0] == size
