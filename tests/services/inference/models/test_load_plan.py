"""How models are planned to load, on made-up machines."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.engine_messages import KvMode, KvType, KvTypes, SplitMode
from services.inference.models import load_plan
from services.inference.models.catalog import CatalogEntry
from services.inference.models.load_plan import LoadPlan
from services.inference.models.memory import MemoryBudget
from services.inference.models.quantities import MemoryBytes
from shared.gguf.gguf_header import GgufHeader
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.types import LoadPurpose, ModelName

GIB = 2**30
#: Llama 3.1 8B in Q4_K_M: each token of context takes 128 KiB.
LLAMA = GgufHeader(
    architecture="llama",
    context_length=131_072,
    block_count=32,
    embedding_length=4096,
    head_counts=(32,) * 32,
    kv_head_counts=(8,) * 32,
    key_length=128,
    value_length=128,
    vocabulary_size=128_256,
    pooling_type=None,
    tensor_bytes=5 * GIB,
    expert_bytes=0,
    split_count=1,
    split_number=0,
)
#: A mixture of experts: 40 of 44 GiB are experts.
MIXTURE = replace(LLAMA, tensor_bytes=44 * GIB, expert_bytes=40 * GIB)


def plan(
    header: GgufHeader = LLAMA, *, ram: float = 64, vram: tuple[float, ...] = (), others: tuple[int, ...] = (), **fields: Any
) -> LoadPlan:
    """Plan a load; ``ram`` and ``vram`` are in GiB."""
    entry = CatalogEntry(name=ModelName("m"), file=Path("m.gguf"), **fields)
    budget = MemoryBudget(round(ram * GIB), "a test", tuple(round(each * GIB) for each in vram))
    return load_plan.plan(header, header.tensor_bytes, entry, budget, others)


def shape(found: LoadPlan) -> tuple[int, int, int, int]:
    return found.gpu_layers, found.cpu_experts, found.context_tokens, found.slots


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(plan(), (-1, 0, 8192, 4), id="a processor: 8,192 tokens and 4 slots"),
        pytest.param(plan(replace(LLAMA, context_length=4096)), (-1, 0, 4096, 4), id="the model's own context is less"),
        pytest.param(plan(ram=9), (-1, 0, 8192, 2), id="memory for 2 slots"),
        pytest.param(plan(ram=8), (-1, 0, 4096, 4), id="a shorter context, so that 2 fit"),
        pytest.param(plan(ram=6.3), (-1, 0, 2048, 2), id="no less than 2,048"),
        pytest.param(plan(ram=5), (-1, 0, 2048, 1), id="too little memory: the budget will refuse it"),
        pytest.param(plan(vram=(80,)), (-1, 0, 32768, 17), id="a GPU: 32,768 tokens and as many slots as fit"),
        pytest.param(plan(replace(LLAMA, context_length=4096), vram=(80,)), (-1, 0, 4096, 32), id="at most 32"),
        pytest.param(plan(vram=(19,)), (-1, 0, 32768, 2), id="a GPU with room for 2"),
        pytest.param(plan(vram=(12,)), (-1, 0, 16384, 2), id="a GPU with less: half the context"),
        pytest.param(plan(vram=(10, 10)), (-1, 0, 32768, 2), id="two GPUs, one model"),
        pytest.param(plan(vram=(4,)), (11, 0, 8192, 2), id="a model larger than the GPU: some layers"),
        pytest.param(plan(vram=(0.6,)), (0, 0, 8192, 4), id="a GPU with room for none: as a processor"),
        pytest.param(plan(MIXTURE, vram=(24,)), (-1, 19, 8192, 2), id="experts go to the processor before layers"),
        pytest.param(plan(MIXTURE, vram=(4,)), (17, 32, 8192, 2), id="all experts, and layers too"),
        pytest.param(plan(vram=(24,), gpu_layers=0), (0, 0, 8192, 4), id="no layers, as set"),
        pytest.param(plan(vram=(24,), gpu_layers=10), (10, 0, 32768, 4), id="10 layers, as set"),
        pytest.param(plan(vram=(1,), gpu_layers=10), (10, 0, 2048, 1), id="10 layers, as set, though they don't fit"),
        pytest.param(plan(MIXTURE, vram=(80,), cpu_experts=32), (-1, 32, 32768, 17), id="experts, as set"),
        pytest.param(plan(slots=9, context_tokens=1000), (-1, 0, 1000, 9), id="slots and context, as set"),
        pytest.param(plan(ram=10, slots=9), (-1, 0, 2048, 9), id="slots are set: the context follows"),
        pytest.param(plan(ram=7, context_tokens=8192), (-1, 0, 8192, 1), id="the context is set: the slots follow"),
        pytest.param(plan(replace(LLAMA, context_length=512), context_tokens=8192), (-1, 0, 512, 4), id="more than the model's own is set"),
        pytest.param(plan(memory_bytes=8 * GIB), (-1, 0, 4096, 4), id="memory is set: context and slots follow"),
        pytest.param(plan(ram=24, others=(5 * GIB,)), (-1, 0, 8192, 4), id="beside another model"),
        pytest.param(plan(ram=14, others=(5 * GIB,)), (-1, 0, 4096, 2), id="two models share what their weights leave"),
        pytest.param(plan(ram=9, others=(5 * GIB,)), (-1, 0, 8192, 2), id="models that don't fit together take turns"),
        pytest.param(plan(vram=(80,), others=(20 * GIB,)), (-1, 0, 32768, 5), id="beside another on a GPU"),
    ],
)
def test_plan(found: LoadPlan, expected: tuple[int, int, int, int]) -> None:
    assert shape(found) == expected, found.reasons


def for_agents(header: GgufHeader = LLAMA, **fields: Any) -> LoadPlan:
    return plan(header, purpose=LoadPurpose.AGENTS, **fields)


F16, Q8_0 = KvType.F16, KvType.Q8_0


@pytest.mark.parametrize(
    ("found", "expected", "kv_type"),
    [
        pytest.param(for_agents(), (-1, 0, 65536, 4), F16, id="a processor"),
        pytest.param(for_agents(ram=16), (-1, 0, 65536, 1), F16, id="one long slot instead of four short ones"),
        pytest.param(for_agents(ram=12), (-1, 0, 65536, 1), Q8_0, id="q8_0 makes it fit"),
        pytest.param(for_agents(ram=12, kv_type=KvTypes(F16)), (-1, 0, 32768, 1), F16, id="f16 is set"),
        pytest.param(for_agents(replace(LLAMA, key_length=80), ram=12), (-1, 0, 32768, 1), F16, id="keys that q8_0 can't store"),
        pytest.param(for_agents(replace(LLAMA, value_length=80), ram=12), (-1, 0, 32768, 1), F16, id="values that it can't store"),
        pytest.param(for_agents(ram=9), (-1, 0, 32768, 1), Q8_0, id="too little memory: as long as one slot may be"),
        pytest.param(for_agents(ram=5), (-1, 0, 2048, 1), Q8_0, id="too little memory: the budget will refuse it"),
        pytest.param(for_agents(ram=14.6, kv_mode=KvMode.EXACT), (-1, 0, 65536, 1), F16, id="with flash attention"),
        pytest.param(for_agents(ram=14.6, kv_mode=KvMode.SHARED), (-1, 0, 65536, 1), Q8_0, id="without, f16 needs 2.1 GiB more"),
        pytest.param(for_agents(replace(LLAMA, context_length=8192), vram=(24,)), (-1, 0, 8192, 17), F16, id="the model's own is less"),
        pytest.param(for_agents(vram=(80,)), (-1, 0, 131072, 4), F16, id="a large GPU: a longer context, as two slots fit"),
        pytest.param(for_agents(vram=(24,)), (-1, 0, 65536, 2), F16, id="a GPU with room for two slots"),
        pytest.param(for_agents(replace(LLAMA, context_length=100_000), vram=(24,)), (-1, 0, 65536, 2), F16, id="no half of 100,000"),
        pytest.param(for_agents(vram=(12,)), (-1, 0, 65536, 1), Q8_0, id="a small GPU: q8_0 before a division"),
        pytest.param(for_agents(vram=(10,)), (29, 0, 65536, 1), Q8_0, id="a smaller GPU: some layers"),
        pytest.param(for_agents(vram=(0.6,)), (0, 0, 65536, 4), Q8_0, id="a GPU with room for none: as a processor"),
        pytest.param(for_agents(MIXTURE, vram=(24,)), (-1, 21, 65536, 1), Q8_0, id="experts go to the processor before layers"),
        pytest.param(for_agents(ram=2, vram=(6,)), (-1, 0, 2048, 3), Q8_0, id="no room anywhere: the whole model on the GPU"),
        pytest.param(for_agents(vram=(24,), gpu_layers=10), (10, 0, 131072, 4), F16, id="10 layers, as set"),
        pytest.param(for_agents(vram=(24,), context_tokens=16384), (-1, 0, 16384, 8), F16, id="a context is set"),
        pytest.param(for_agents(vram=(24,), slots=4), (-1, 0, 65536, 4), Q8_0, id="slots are set: they all get it"),
        pytest.param(for_agents(memory_bytes=12 * GIB), (-1, 0, 65536, 1), Q8_0, id="memory is set"),
        pytest.param(for_agents(vram=(16,), others=(5 * GIB,)), (-1, 0, 65536, 1), F16, id="before the share of another model"),
        pytest.param(for_agents(vram=(80,), others=(20 * GIB,)), (-1, 0, 65536, 3), F16, id="further slots beside another model"),
    ],
)
def test_plan_for_agents(found: LoadPlan, expected: tuple[int, int, int, int], kv_type: KvType) -> None:
    assert (shape(found), found.kv_type) == (expected, KvTypes(kv_type)), found.reasons
    assert found.embedding_tokens == min(found.context_tokens, load_plan.AGENTS_EMBEDDING_TOKENS)


def test_replicas_for_agents_are_only_on_gpus_with_enough_room() -> None:
    small, large = (for_agents(vram=(each, each), replicas=None) for each in (9, 24))
    assert (small.devices, small.context_tokens, large.devices) == ((None,), CONTEXT_TOKENS, (0, 1))


def test_reasons_name_each_decision() -> None:
    assert plan(MIXTURE, vram=(24,)).reasons == (
        "devices: all 32 layers on GPU 0, but the experts of 19 layers on the processor, because 44.0 GiB don't fit 24.0 GiB",
        "context: 8192 tokens per slot, reduced from 32768, so that 2 slots fit",
        "slots: 2, as many as fit",
        "context in memory: f16, 128.0 KiB per token",
        "memory: 23.7 GiB of GPU memory and 23.8 GiB of 24.0 GiB of GPU memory and 64.0 GiB",
        "replicas: 1",
    )
    assert plan(MIXTURE, vram=(24,)).may_fit
    assert not plan(MIXTURE, vram=(24,), tensor_split=(1.0,)).may_fit
    assert not plan(vram=(24,), gpu_layers=9).may_fit
    assert not plan().may_fit
    assert plan(slots=1, kv_type=KvTypes(KvType.Q8_0, KvType.Q4_0)).reasons[2:4] == (
        "slots: 1, as set",
        "context in memory: keys q8_0, values q4_0, 52.0 KiB per token",
    )


@pytest.mark.parametrize(
    ("found", "devices"),
    [
        pytest.param(plan(vram=(24, 20), replicas=None), (0, 1), id="one for each GPU"),
        pytest.param(plan(vram=(24, 2), replicas=None), (None,), id="a GPU has no room: all GPUs together"),
        pytest.param(plan(MIXTURE, vram=(24, 24), replicas=None), (None,), id="too large for one GPU"),
        pytest.param(plan(vram=(24,), replicas=None), (None,), id="one GPU"),
        pytest.param(plan(replicas=None), (None,), id="no GPU"),
        pytest.param(plan(vram=(24, 20), replicas=None, device=1), (1,), id="a GPU is set"),
        pytest.param(plan(vram=(24, 20), split_mode=SplitMode.NONE), (0,), id="the first alone"),
        pytest.param(plan(vram=(24, 20), replicas=None, tensor_split=(1.0, 1.0)), (None,), id="shares are set"),
        pytest.param(plan(ram=32, replicas=3, slots=4, context_tokens=2048), (None,) * 3, id="replicas are set"),
        pytest.param(plan(ram=14, replicas=2), (None, None), id="replicas are set: context and slots follow"),
        pytest.param(plan(ram=16, replicas=3, slots=4, context_tokens=2048), (None,) * 2, id="fewer, for lack of memory"),
    ],
)
def test_replicas(found: LoadPlan, devices: tuple[int | None, ...]) -> None:
    assert found.devices == devices, found.reasons


def test_projector_counts_where_the_model_is() -> None:
    for vram in ((), (24,)):
        budget = MemoryBudget(64 * GIB, "a test", tuple(each * GIB for each in vram))
        entry = CatalogEntry(name=ModelName("m"), file=Path("m.gguf"), slots=2, context_tokens=2048, projector=Path("mmproj.gguf"))
        without, with_images = (load_plan.plan(LLAMA, 5 * GIB, entry, budget, projector_bytes=size) for size in (0, GIB))
        assert (with_images.need.vram - without.need.vram, with_images.need.ram - without.need.ram) == ((GIB, 0) if vram else (0, GIB))
        assert with_images.reasons[-2] == "images: by mmproj.gguf, 1.0 GiB"


def test_smallest_gpu_sets_the_size_of_all_replicas() -> None:
    assert shape(plan(vram=(80, 12), replicas=None)) == shape(plan(vram=(12,)))


def test_header_of_a_part_describes_only_that_part() -> None:
    part = replace(MIXTURE, tensor_bytes=11 * GIB, expert_bytes=10 * GIB, split_count=4)
    entry = CatalogEntry(name=ModelName("m"), file=Path("m.gguf"))
    whole = load_plan.plan(part, 44 * GIB, entry, MemoryBudget(64 * GIB, "a test", (24 * GIB,)))
    assert shape(whole) == shape(plan(MIXTURE, vram=(24,)))


@given(
    ram=st.integers(1, 80),
    vram=st.lists(st.integers(0, 40), max_size=3),
    mixture=st.booleans(),
    slots=st.none() | st.integers(1, 40),
    context=st.none() | st.integers(64, 200_000),
    purpose=st.sampled_from(LoadPurpose),
)
def test_plan_fits_or_is_the_least(
    ram: int, vram: list[int], *, mixture: bool, slots: int | None, context: int | None, purpose: LoadPurpose
) -> None:
    header = MIXTURE if mixture else LLAMA
    found = plan(header, ram=ram, vram=tuple(vram), slots=slots, context_tokens=context, purpose=purpose)
    assert 1 <= found.slots <= (slots or load_plan.GPU_SLOTS)
    assert min(load_plan.MIN_CONTEXT_TOKENS, context or load_plan.MIN_CONTEXT_TOKENS) <= found.context_tokens
    assert found.context_tokens <= (context or {LoadPurpose.CHATS: 32_768, LoadPurpose.AGENTS: 131_072}[purpose])
    room = MemoryBytes(ram * GIB, sum(vram) * GIB)
    if not found.need.fits(room):
        # Even the CPU alone has too little memory for the smallest plan.
        alone = plan(header, ram=ram, slots=slots or 1, context_tokens=context or load_plan.MIN_CONTEXT_TOKENS, purpose=purpose)
        assert not alone.need.fits(room) or found.slots == 1
