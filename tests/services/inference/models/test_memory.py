from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference.backends import llama
from services.inference.engine import engine_messages, gguf_header
from services.inference.engine.devices import MARGIN_BYTES, Device
from services.inference.engine.engine_messages import KvType, KvTypes
from services.inference.engine.gguf_header import GgufHeader
from services.inference.jobs import EmbeddingJob
from services.inference.models import load_plan, memory, model_discovery
from services.inference.models.catalog import Catalog, CatalogEntry
from services.inference.models.memory import MemoryBudget
from shared.api.inference import ModelState
from shared.types import ModelName
from tests.services.inference.standins import Reader, Watch, job, until
from tests.services.inference.vector_reader import VectorReader

GIB = 2**30


def machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   8388608 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "sys/fs/cgroup/a/b"
V1 = "sys/fs/cgroup/memory/docker/x"


@pytest.mark.parametrize(
    ("files", "free_gib"),
    [
        pytest.param({}, 8, id="no container: what the kernel calls available"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", f"{V2}/memory.max": f"{4 * GIB}\n", f"{V2}/memory.current": f"{GIB}\n"},
            3,
            id="a limit of cgroup v2",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/memory.max": "max\n",
                f"{V2}/memory.current": "5\n",
                "sys/fs/cgroup/a/memory.max": f"{4 * GIB}",
                "sys/fs/cgroup/a/memory.current": f"{2 * GIB}",
            },
            2,
            id="the limit of a group above",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/memory.max": f"{4 * GIB}\n",
                f"{V2}/memory.current": f"{3 * GIB}\n",
                f"{V2}/memory.stat": f"anon 7\ninactive_file {2 * GIB}\n",
            },
            3,
            id="pages of files are given back when somebody needs them",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "9:cpu:/\n4:memory:/docker/x\n",
                f"{V1}/memory.limit_in_bytes": f"{4 * GIB}\n",
                f"{V1}/memory.usage_in_bytes": f"{GIB}\n",
            },
            3,
            id="a limit of cgroup v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/x\n",
                f"{V1}/memory.limit_in_bytes": "9223372036854771712\n",
                f"{V1}/memory.usage_in_bytes": f"{GIB}\n",
            },
            8,
            id="cgroup v1 without a limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/of-the-host\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{5 * GIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
            },
            5,
            id="a path of the host's that is not there",
        ),
        pytest.param({"proc/self/cgroup": "what is this\n\n0::\n", f"{V2}/memory.max": "?"}, 8, id="files of another kernel"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n", f"{V2}/memory.max": "5\n", f"{V2}/memory.current": f"{GIB}\n"}, 0, id="a full container"
        ),
    ],
)
def test_free_memory(tmp_path: Path, files: dict[str, str], free_gib: int) -> None:
    assert memory.measure(None, root=machine(tmp_path, files)).bytes == round(free_gib * GIB * 0.9)


def test_gpu_memory_is_apart_from_ram_and_the_setting_replaces_it(tmp_path: Path) -> None:
    root = machine(tmp_path, {})
    devices = [Device(f"CUDA{number}", "a GPU", 24 * GIB, 20 * GIB) for number in range(2)]
    ram, left = round(8 * GIB * 0.9), 20 * GIB - MARGIN_BYTES
    described = "40.0 GiB free on CUDA0, CUDA1, 8.0 GiB of memory free at the start"
    assert memory.measure(None, devices, root=root) == MemoryBudget(ram, described, (left, left))
    assert memory.measure(8 * GIB, devices, root=root).vram == (4 * GIB, 4 * GIB)
    assert memory.measure(7, root=root) == MemoryBudget(7, "MODEL_MEMORY")


def test_the_prompt_cache_takes_its_part_of_the_ram(tmp_path: Path) -> None:
    root = machine(tmp_path, {})
    assert memory.prompt_cache_bytes(None, root=root) == round(0.8 * GIB)
    assert memory.prompt_cache_bytes(0, root=root) == 0
    assert memory.measure(None, cache=GIB, root=root).bytes == round(8 * GIB * 0.9) - GIB
    gpu = memory.measure(None, [Device("CUDA0", "a GPU", 24 * GIB, 20 * GIB)], cache=GIB, root=root)
    assert (gpu.bytes, len(gpu.vram)) == (round(8 * GIB * 0.9) - GIB, 1)
    assert gpu.vram == memory.measure(None, [Device("CUDA0", "a GPU", 24 * GIB, 20 * GIB)], root=root).vram


def test_machine_without_such_files_gets_an_estimate(tmp_path: Path) -> None:
    assert memory.measure(None, root=tmp_path).bytes > 0


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
    assert need_bytes(header, longer) - need == 4 * 1024 * per_token + for_embeddings
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
        answering = resident_bytes(backend.engine_pid(entry.name))
        # Nearly as long as a slot: unwritten pages are not in memory.
        await backend.embed(EmbeddingJob(entry.name, ("sea " * 1000,)), VectorReader())
        embedding = resident_bytes(backend.engine_pid(entry.name))
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
