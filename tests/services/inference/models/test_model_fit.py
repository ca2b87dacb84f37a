"""Whether models that a machine doesn't have would fit it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.models import load_plan, model_fit
from services.inference.models.catalog import CatalogEntry, Defaults
from services.inference.models.memory import MemoryBudget
from shared.api.inference import MAX_HEADER_BYTES, Fit, ModelFacts
from shared.gguf import gguf_header
from shared.types import ModelName
from tests import gguf_files
from tests.gguf_files import LlamaShape

GB = 10**9
#: Qwen3-8B in Q4_K_M.
QWEN = ModelFacts(file_bytes=5_027_783_488, layers=36, width=4096, key_width=1024, context_tokens=40_960)
ENTRY = Defaults().entry(name=ModelName("planned"), file=Path())


def budget(ram: int, *vram: int) -> MemoryBudget:
    return MemoryBudget(ram, "a test", vram)


def test_machines_of_several_sizes() -> None:
    def plan(*memory: int) -> tuple[Fit, bool]:
        found = model_fit.plan(QWEN, ENTRY, budget(*memory), [])
        return found.fit, found.on_gpu

    assert plan(8 * GB) == (Fit.YES, False)
    assert plan(4 * GB) == (Fit.NO, False)
    assert plan(16 * GB, 12 * GB) == (Fit.YES, True)
    assert plan(16 * GB, 4 * GB) == (Fit.PARTLY, False)
    assert plan(2 * GB, 2 * GB) == (Fit.NO, False)


def test_the_numbers_are_said() -> None:
    no = model_fit.plan(QWEN, ENTRY, budget(4 * GB), [])
    assert no.detail.startswith("it needs ")
    assert no.detail.endswith("and models may use 3.7 GiB")
    partly = model_fit.plan(QWEN, ENTRY, budget(16 * GB, 4 * GB), [])
    assert " of 36 layers on the processor; 8192 tokens of context" in partly.detail
    assert model_fit.plan(QWEN, ENTRY, budget(16 * GB, 12 * GB), []).free_bytes == 12 * GB


@pytest.mark.parametrize("vram", [(), (2**30,)], ids=["processor", "GPU"])
def test_the_beginning_of_a_file_is_planned_like_the_whole(tmp_path: Path, vram: tuple[int, ...]) -> None:
    file = tmp_path / "m.gguf"
    gguf_files.write_llama(
        file,
        LlamaShape(layers=4, embedding=256, heads=4, kv_heads=2, feed_forward=64, vocabulary=9000, context=4096),
        weights="q8_0",
        seed=1,
    )
    size, whole = file.stat().st_size, file.read_bytes()
    planned = load_plan.plan(gguf_header.check_parts(file), size, ENTRY, budget(2**30, *vram), [])
    start = whole.index(b"tokenizer.ggml.tokens")
    for length in (len(whole), MAX_HEADER_BYTES, start + 200):
        found = model_fit.plan(ModelFacts(file_bytes=size, header=whole[: min(length, MAX_HEADER_BYTES)]), ENTRY, budget(2**30, *vram), [])
        assert (found.fit, found.context_tokens) == (Fit.YES, planned.context_tokens)
        assert found.detail == f"4096 tokens of context, {planned.slots} at once, {planned.total}"


@pytest.mark.parametrize("header", [b"<html>", b"GGUF", b"GGUF\x03\0\0\0", b"\0"])
def test_a_beginning_of_something_else_fits_nowhere(header: bytes) -> None:
    found = model_fit.plan(ModelFacts(file_bytes=10, header=header), ENTRY, budget(2**30), [])
    assert found.fit is Fit.NO
    assert found.detail.startswith("its file is not a usable model: ")


@pytest.mark.parametrize("cut", range(0, 2000, 7))
def test_a_header_that_is_cut_anywhere_is_read_as_far_as_it_goes(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "m.gguf"
    gguf_files.write_llama(
        file, LlamaShape(layers=2, embedding=64, heads=4, kv_heads=4, feed_forward=64, vocabulary=300, context=512), weights="q8_0", seed=1
    )
    found = model_fit.plan(ModelFacts(file_bytes=10**6, header=file.read_bytes()[: cut + 1]), ENTRY, budget(2**30), [])
    assert found.fit in (Fit.YES, Fit.NO)


@given(
    st.builds(
        ModelFacts,
        file_bytes=st.integers(1, 2**40),
        layers=st.integers(1, 130),
        width=st.integers(1, 20_000),
        key_width=st.integers(0, 8192),
        context_tokens=st.integers(0, 10**6),
    ),
    st.integers(0, 2**38),
    st.lists(st.integers(0, 2**37), max_size=3),
    st.integers(0, 2**38),
)
def test_more_memory_never_makes_a_model_fit_less(facts: ModelFacts, ram: int, vram: list[int], more: int) -> None:
    ranks = {Fit.NO: 0, Fit.PARTLY: 1, Fit.YES: 2}
    entry: CatalogEntry = ENTRY
    before = model_fit.plan(facts, entry, budget(ram, *vram), [])
    after = model_fit.plan(facts, entry, budget(ram + more, *(each + more for each in vram)), [])
    assert ranks[before.fit] <= ranks[after.fit]
    assert before.fit is not Fit.PARTLY or vram
    if before.fit is Fit.YES:
        assert facts.file_bytes <= ram + sum(vram)
