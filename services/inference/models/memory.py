"""What this machine has for models, and what a model will take of it."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inference.engine.devices import Device
from services.inference.engine.engine_messages import KvType
from services.inference.engine.gguf import gguf_header
from services.inference.engine.gguf.gguf_header import GgufHeader
from services.inference.models import quantities
from services.inference.models.catalog import CatalogEntry

#: Left to everything else on the machine, of what is free when the worker starts.
HEADROOM_SHARE = 0.1
#: Of a GPU's memory: the driver and fragmentation take some of what is reported as free.
DEVICE_HEADROOM_SHARE = 0.05
#: An engine's process before it has a model: Python, llama.cpp, our own code. Measured: 62 MiB.
PROCESS_BYTES = 64 * 2**20
#: The engine computes up to so many tokens in a step, and llama.cpp makes room for the logits of each of them.
STEP_TOKENS = 256
#: The same for texts that become vectors, fewer where the vocabulary is large: as engine/embedding has them on a processor.
EMBEDDING_STEP_TOKENS = 128
EMBEDDING_LOGITS_BYTES = 64 * 1024 * 1024
#: Per slot where nobody says otherwise; as the engine has it.
DEFAULT_CONTEXT_TOKENS = 2048

_FLOAT_BYTES = 4
#: What a cgroup without a limit shows: the largest multiple of a page.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class Budget:
    """What all loaded models together may have."""

    bytes: int
    #: Where the number comes from, for people.
    source: str


def measure(setting: int | None, devices: Sequence[Device] = (), *, root: Path = Path("/")) -> Budget:
    """``setting`` is MODEL_MEMORY and goes before all; then what the GPUs have free, where there are any; then the RAM that is
    free now, within the limits of the container. ``root`` is where /proc and /sys are."""
    if setting is not None:
        return Budget(setting, "MODEL_MEMORY")
    if devices:
        free = sum(device.free_bytes for device in devices)
        names = ", ".join(device.name for device in devices)
        return Budget(round(free * (1 - DEVICE_HEADROOM_SHARE)), f"{quantities.show_bytes(free)} free on {names}")
    free = min([_free_bytes(root), *_container_rooms(root)])
    return Budget(max(0, round(free * (1 - HEADROOM_SHARE))), f"{quantities.show_bytes(max(0, free))} of memory free at the start")


def context_tokens(header: GgufHeader, entry: CatalogEntry) -> int:
    """What a slot of this model will hold."""
    wanted = entry.context_tokens or DEFAULT_CONTEXT_TOKENS
    return min(wanted, header.context_length or wanted)


def need_bytes(header: GgufHeader, entry: CatalogEntry, file_bytes: int | None = None) -> int:
    """What one engine of this model takes: its tensors, the KV memory of all slots, room to compute in, what embeddings need beside
    them, and its process.

    ``file_bytes`` is the size of all parts of a model that lies in several files, of which the header tells the first.
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
    """Of `need_bytes` what the engine takes when the first text becomes a vector: a second context, with room for one text and for a
    batch of others. It is kept free from the start, or a model that was loaded meanwhile would have it."""
    longest, words = context_tokens(header, entry), header.vocabulary_size or 0
    width, heads = header.embedding_length or 0, max(header.head_counts, default=0)
    per_token = gguf_header.kv_bytes_per_token(header)
    if per_token == 0:
        # It reads a text at once and keeps nothing of it, but compares each token with each.
        return longest * (8 * width + heads * longest) * _FLOAT_BYTES
    batch = min(EMBEDDING_STEP_TOKENS, longest, EMBEDDING_LOGITS_BYTES // (_FLOAT_BYTES * max(1, words)))
    cells = longest + batch
    # The logits of a batch are where they are computed and where they are given out.
    return cells * (per_token or 0) + batch * (2 * words + 8 * width + heads * cells) * _FLOAT_BYTES


# --- what is free -----------------------------------------------------------------------------------------------------------


def _free_bytes(root: Path) -> int:
    found = _table(root / "proc/meminfo").get("MemAvailable")
    if found is not None:
        return found * 1024
    # Not Linux: half of what is built in is a careful guess, and MODEL_MEMORY is the way to say it better.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _container_rooms(root: Path) -> Iterator[int]:
    """What is left under each memory limit that this process is under; cgroup v2 or v1."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            yield from _rooms(root / "sys/fs/cgroup", path, limit="memory.max", used="memory.current", reclaimable="inactive_file")
        elif "memory" in controllers.split(","):
            yield from _rooms(
                root / "sys/fs/cgroup/memory",
                path,
                limit="memory.limit_in_bytes",
                used="memory.usage_in_bytes",
                reclaimable="total_inactive_file",
            )


def _rooms(mount: Path, path: str, *, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Of the group and of each above it. In a container the path may be the host's, which is not there: its root is ours."""
    below = Path(path.strip("/"))
    for folder in (mount / below, *((mount / below).parents[: len(below.parts)])):
        most, taken = _number(folder / limit), _number(folder / used)
        if most is None or taken is None or most >= _NO_LIMIT_BYTES:
            continue
        # Pages of files count as used, and go when somebody needs the room.
        yield most - taken + _table(folder / "memory.stat").get(reclaimable, 0)


def _number(path: Path) -> int | None:
    """None for ``max``, and where there is no such file."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.replace(":", " ").split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
