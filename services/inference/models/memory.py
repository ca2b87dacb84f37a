"""Measures the memory for models, and estimates how much a model needs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inference.engine import gguf_header
from services.inference.engine.devices import Device
from services.inference.engine.engine_messages import KvType
from services.inference.engine.gguf_header import GgufHeader
from services.inference.models.catalog import CatalogEntry
from shared import amounts

#: Share of the free memory that is left to the rest of the machine.
HEADROOM_SHARE = 0.1
#: Share of a GPU's free memory that the driver and fragmentation take.
DEVICE_HEADROOM_SHARE = 0.05
#: An engine process without a model: Python, llama.cpp and our code. Measured: 62 MiB.
PROCESS_BYTES = 64 * 2**20
#: Tokens in a step; llama.cpp reserves memory for the logits of each.
STEP_TOKENS = 256
#: The same for embeddings, fewer if the vocabulary is large; as `embedding_context` does on a processor.
EMBEDDING_STEP_TOKENS = 128
EMBEDDING_LOGITS_BYTES = 64 * 1024 * 1024
DEFAULT_CONTEXT_TOKENS = 2048

_FLOAT_BYTES = 4
#: A cgroup without a limit shows the largest multiple of a page.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory for all loaded models together."""

    bytes: int
    source: str


def measure(setting: int | None, devices: Sequence[Device] = (), *, root: Path = Path("/")) -> MemoryBudget:
    """Return ``setting`` (MODEL_MEMORY) if it is set, else the GPUs' free memory, else the free RAM within the container's limits.
    ``root`` holds /proc and /sys."""
    if setting is not None:
        return MemoryBudget(setting, "MODEL_MEMORY")
    if devices:
        free = sum(device.free_bytes for device in devices)
        names = ", ".join(device.name for device in devices)
        return MemoryBudget(round(free * (1 - DEVICE_HEADROOM_SHARE)), f"{amounts.show_bytes(free)} free on {names}")
    free = min([_free_bytes(root), *_container_limits(root)])
    return MemoryBudget(max(0, round(free * (1 - HEADROOM_SHARE))), f"{amounts.show_bytes(max(0, free))} of memory free at the start")


def context_tokens(header: GgufHeader, entry: CatalogEntry) -> int:
    """Return the context of a slot."""
    wanted = entry.context_tokens or DEFAULT_CONTEXT_TOKENS
    return min(wanted, header.context_length or wanted)


def need_bytes(header: GgufHeader, entry: CatalogEntry, file_bytes: int | None = None) -> int:
    """Estimate the memory of one engine: tensors, KV cache of all slots, compute buffers, embeddings and the process.

    ``file_bytes`` is the size of all parts of a split model, whose header only describes the first.
    """
    if entry.memory_bytes is not None:
        return entry.memory_bytes
    kind = KvType.F16 if entry.kv_type is None else entry.kv_type
    per_token = gguf_header.kv_bytes_per_token(header, kind.value, kind.value) or 0
    kv = entry.slots * context_tokens(header, entry) * per_token
    compute = STEP_TOKENS * ((header.vocabulary_size or 0) + 8 * (header.embedding_length or 0)) * _FLOAT_BYTES
    tensors = header.tensor_bytes if file_bytes is None else file_bytes
    return tensors + kv + compute + embedding_bytes(header, entry) + PROCESS_BYTES


def embedding_bytes(header: GgufHeader, entry: CatalogEntry) -> int:
    """Estimate the second context that the engine creates for the first embedding: room for one text and a batch of others.
    `need_bytes` includes it from the start; else a model loaded meanwhile could take the memory."""
    longest, words = context_tokens(header, entry), header.vocabulary_size or 0
    width, heads = header.embedding_length or 0, max(header.head_counts, default=0)
    per_token = gguf_header.kv_bytes_per_token(header)
    if per_token == 0:
        # The model reads a text at once without a cache, but compares each token with each.
        return longest * (8 * width + heads * longest) * _FLOAT_BYTES
    batch = min(EMBEDDING_STEP_TOKENS, longest, EMBEDDING_LOGITS_BYTES // (_FLOAT_BYTES * max(1, words)))
    cells = longest + batch
    # The logits of a batch exist twice: where they are computed and in the output.
    return cells * (per_token or 0) + batch * (2 * words + 8 * width + heads * cells) * _FLOAT_BYTES


def _free_bytes(root: Path) -> int:
    found = _table(root / "proc/meminfo").get("MemAvailable")
    if found is not None:
        return found * 1024
    # Not Linux: half of the RAM is a careful guess; MODEL_MEMORY overrides it.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _container_limits(root: Path) -> Iterator[int]:
    """Yield what is left under each memory limit of this process, in cgroup v2 or v1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            yield from _spare(root / "sys/fs/cgroup", path, limit="memory.max", used="memory.current", reclaimable="inactive_file")
        elif "memory" in controllers.split(","):
            yield from _spare(
                root / "sys/fs/cgroup/memory",
                path,
                limit="memory.limit_in_bytes",
                used="memory.usage_in_bytes",
                reclaimable="total_inactive_file",
            )


def _spare(mount: Path, path: str, *, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Look at the group and each one above it. In a container, the path may be the host's and not exist; the root is then ours."""
    below = Path(path.strip("/"))
    for folder in (mount / below, *((mount / below).parents[: len(below.parts)])):
        most, taken = _number(folder / limit), _number(folder / used)
        if most is None or taken is None or most >= _NO_LIMIT_BYTES:
            continue
        # Page cache counts as used, but is freed on demand.
        yield most - taken + _table(folder / "memory.stat").get(reclaimable, 0)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    rows = (line.replace(":", " ").split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
