"""A model's file is checked once the engine is installed; setup may still be installing it."""

import asyncio
import hashlib
import importlib.util
import os
import threading
from pathlib import Path

import pytest

from services.inference.models import model_discovery, model_files
from services.inference.models.catalog import CatalogEntry
from shared.types import ModelName
from tests.services.inference.standins import until

MISSING = "the engine is not installed; run `make up`"


def test_an_environment_without_engine_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_files.missing_engine() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert model_files.missing_engine() == MISSING


def test_the_copy_of_the_default_model_is_expected_after_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "missing_engine", lambda: MISSING)
    monkeypatch.setattr(Path, "is_file", lambda _path: False)
    assert model_discovery.packaged() == model_discovery.fast_copy(model_discovery.installed())


async def test_file_is_read_when_the_engine_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = [MISSING]
    monkeypatch.setattr(model_files, "missing_engine", lambda: missing[0])
    monkeypatch.setattr(model_files, "_LOOK_SECONDS", 0.01)
    file = tmp_path / "a.gguf"
    changes: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        entry = CatalogEntry(name=ModelName("a"), file=file)
        model = model_files.ModelFile(entry, tasks, lambda: changes.put_nowait(model.step), model_files.KnownDigests(tmp_path / "digests"))
        waiting = tasks.create_task(model.ensure_served())
        assert await changes.get() == MISSING
        missing[0] = "the engine is being built, less than a minute left"
        assert await changes.get() == missing[0]
        assert model.checked is None
        # Setup writes the model last.
        file.symlink_to(model_discovery.installed())
        missing[0] = ""
        await waiting
    assert model.problem == ""
    assert model.checked is not None
    assert model.checked.header is not None


async def test_an_odd_file_is_a_problem_of_its_model_and_ends_no_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def raise_anything(path: Path) -> None:
        raise IndexError("a header that nobody thought of")

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for name, reader in (("check_parts", model_files.gguf_header), ("_sha256", model_files)):
            with monkeypatch.context() as patched:
                patched.setattr(reader, name, raise_anything)
                file = tmp_path / f"{name}.gguf"
                file.symlink_to(model_discovery.installed())
                entry = CatalogEntry(name=ModelName("a"), file=file, digest=f"sha256:{'0' * 64}")
                model = model_files.ModelFile(entry, tasks, lambda: None, model_files.KnownDigests(None))
                await model.ensure_served()
            assert str(file) in model.problem


async def test_files_that_are_being_read_hold_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A request with tools or images needs one of asyncio's threads; there are six on two cores."""
    released, entered = threading.Event(), list[int]()

    def read_for_long(*_: object) -> str:
        entered.append(1)
        assert released.wait(60)
        return "f" * 64

    monkeypatch.setattr(model_files, "_sha256", read_for_long)
    known = model_files.KnownDigests(None)
    threads = min(32, (os.cpu_count() or 1) + 4)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(threads):
            file = tmp_path / f"{number}.gguf"
            file.symlink_to(model_discovery.installed())
            model = model_files.ModelFile(CatalogEntry(name=ModelName(f"m{number}"), file=file), tasks, lambda: None, known)
            tasks.create_task(model.ensure_digest())
        try:
            await until(lambda: len(entered) == threads)
            async with asyncio.timeout(20):
                await asyncio.gather(*(asyncio.to_thread(int) for _ in range(threads)))
        finally:
            released.set()


async def test_another_projector_makes_another_digest(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.symlink_to(model_discovery.installed())
    projectors = [tmp_path / f"mmproj-{name}.gguf" for name in ("one", "two", "same")]
    for projector, content in zip(projectors, (b"one", b"two", b"one"), strict=True):
        projector.write_bytes(content)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:

        async def read(projector: Path | None) -> model_files.ModelFile:
            entry = CatalogEntry(name=ModelName("m"), file=model, projector=projector)
            file = model_files.ModelFile(entry, tasks, lambda: None, model_files.KnownDigests(None))
            assert file.digest_with_projector == ""
            await file.ensure_digest()
            return file

        alone = await read(None)
        one, two, same = [await read(projector) for projector in projectors]
        assert {alone.digest} == {file.digest for file in (one, two, same)} == {hashlib.sha256(model.read_bytes()).hexdigest()}
        assert alone.digest_with_projector == alone.digest
        assert one.digest_with_projector == same.digest_with_projector
        assert len({file.digest_with_projector for file in (alone, one, two)}) == 3
        # A changed projector is read again.
        projectors[0].write_bytes(b"three")
        before = one.digest_with_projector
        await one.ensure_digest()
        assert one.digest_with_projector not in {before, ""}
