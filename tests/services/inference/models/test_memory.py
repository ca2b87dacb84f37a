from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.backends import llama
from services.inference.engine import engine_messages
from services.inference.engine.devices import MARGIN_BYTES, Device
from services.inference.engine.engine_messages import KvType, KvTypes
from services.inference.models import load_plan, memory, model_discovery
from services.inference.models.catalog import Catalog, CatalogEntry
from services.inference.models.memory import MemoryBudget
from shared.api.inference import ModelState
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader
from shared.node import machine
from shared.types import ModelName
from tests.services.inference.standins import Reader, Watch, engine_pid, job, until
from tests.services.inference.vector_reader import VectorReader, texts_for

GIB = 2**30


@pytest.fixture(autouse=True)
def free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 8 * GIB)


def test_gpu_memory_is_apart_from_ram_and_the_setting_replaces_it() -> None:
    devices = [Device(f"CUDA{number}", "a GPU", 24 * GIB, 20 * GIB) for number in range(2)]
    ram, left = round(8 * GIB * 0.9), 20 * GIB - MARGIN_BYTES
    described = "40.0 GiB free on CUDA0, CUDA1, 8.0 GiB of memory free at the start"
    assert memory.measure(None, devices) == MemoryBudget(ram, described, (left, left))
    assert memory.measure(None) == MemoryBudget(ram, "8.0 GiB of memory free at the start")
    assert memory.measure(8 * GIB, devices).vram == (4 * GIB, 4 * GIB)
    assert memory.measure(7) == MemoryBudget(7, "MODEL_MEMORY")


def test_the_prompt_cache_takes_its_part_of_the_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("CUDA0", "a GPU", 24 * GIB, 20 * GIB)
    assert memory.measure(None, cache=None).prompt_cache == memory.measure(7, cache=None).prompt_cache == round(0.8 * GIB)
    assert memory.measure(None).prompt_cache == 0
    for devices in ((), (gpu,)):
        budget = memory.measure(None, devices, cache=GIB)
        assert (budget.bytes, budget.prompt_cache) == (round(8 * GIB * 0.9) - GIB, GIB)
        assert budget.vram == memory.measure(None, devices).vram
    assert memory.measure(8 * GIB, (gpu,), cache=GIB).prompt_cache == GIB
    monkeypatch.setattr(machine, "free_memory", lambda: 200 * GIB)
    assert memory.measure(None, cache=None).prompt_cache == memory.MAX_PROMPT_CACHE_BYTES


def smollm2() -> tuple[CatalogEntry, GgufHeader]:
    file = model_discovery.packaged()
    with file.open("rb") as opened:
        header = gguf_header.read_header(opened, file.stat().st_size)
    return CatalogEntry(name=ModelName("smollm2"), file=file, slots=4, context_tokens=1024), header


def need_bytes(header: GgufHeader, entry: CatalogEntry, file_bytes: int | None = None) -> int:
    size = header.tensor_bytes if file_bytes is None else file_bytes
    return load_plan.plan(header, size, entry, MemoryBudget(2**50, "a test")).need.ram


def test_needed_memory_depends_on_slots_context_and_kv_type() -> None:
    entry, header = smollm2()
    per_token = gguf_header.kv_bytes_per_token(header)
    assert per_token is not None
    need = need_bytes(header, entry)
    assert need_bytes(header, replace(entry, slots=8)) - need == 4 * 1024 * per_token
    longer = replace(entry, context_tokens=2048)
    for_embeddings = memory.embedding_bytes(header, 2048) - memory.embedding_bytes(header, 1024)
    assert for_embeddings > 1024 * per_token
    for_attention = 2 * memory.STEP_TOKENS * 1024
    assert need_bytes(header, longer) - need == 4 * 1024 * per_token + for_embeddings + for_attention
    assert need_bytes(header, replace(entry, kv_type=KvTypes(KvType.Q8_0))) < need
    assert need_bytes(header, entry, file_bytes=10**9 + header.tensor_bytes) - need == 10**9
    assert need_bytes(header, replace(entry, memory_bytes=5)) == 5


def resident_bytes(pid: int | None) -> int:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    (resident,) = (int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS:"))
    return resident


@pytest.mark.nightly("long")
async def test_estimate_is_close_to_the_real_memory_of_an_engine() -> None:
    entry, header = smollm2()
    catalogue = Catalog((replace(entry, preload=True),))
    options = engine_messages.LoadCommand("", 4, 1024, 1, 0)
    async with llama.opened(catalogue, options, 8, MemoryBudget(GIB, "a test"), Watch()) as backend:
        await until(lambda: backend.models()[0].state is ModelState.READY)
        await backend.generate(job("Tell a story of the sea. " * 20, model="smollm2", max_tokens=2), Reader())
        answering = resident_bytes(engine_pid(backend, entry.name))
        # Nearly as long as a slot, because unwritten pages aren't in memory.
        await backend.embed(texts_for(entry.name, ("sea " * 1000,)), VectorReader())
        embedding = resident_bytes(engine_pid(backend, entry.name))
    assert need_bytes(header, entry) - memory.embedding_bytes(header, 1024) == pytest.approx(answering, rel=0.25)
    assert need_bytes(header, entry) == pytest.approx(embedding, rel=0.25)
    assert memory.embedding_bytes(header, 1024) == pytest.approx(embedding - answering, rel=0.3)


def test_bidirectional_model_needs_attention_memory_but_no_kv_cache() -> None:
    _, header = smollm2()
    reader = replace(header, architecture="bert")
    one, two = (memory.embedding_bytes(reader, tokens) for tokens in (4096, 8192))
    assert 4 * 9 * 4096**2 < one < 4 * 11 * 4096**2
    assert 3.7 < two / one < 4


def test_large_vocabulary_shrinks_the_batch_not_the_free_memory() -> None:
    _, header = smollm2()
    large = replace(header, vocabulary_size=256_000)
    assert memory.embedding_bytes(large, 1024) < memory.embedding_bytes(header, 1024) + 2 * memory.EMBEDDING_LOGITS_BYTES
    assert memory.embedding_bytes(replace(header, vocabulary_size=None), 1024) < memory.embedding_bytes(header, 1024)
