"""Measures the memory for models, and estimates how much a model needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inference.engine import lookup
from services.inference.engine.devices import MARGIN_BYTES, Device
from services.inference.models.quantities import MemoryBytes
from shared import amounts
from shared.api.generation import LONG_SIDE
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader, NotAModel
from shared.node import machine

#: Share of the free memory that is left to the rest of the machine.
HEADROOM_SHARE = 0.1
#: The share of the free memory for prompts that lost their slots.
PROMPT_CACHE_SHARE = 0.1
MAX_PROMPT_CACHE_BYTES = 8 * 2**30
#: An engine process without a model: Python, llama.cpp and our code. Measured: 62 MiB.
PROCESS_BYTES = 64 * 2**20
#: Tokens in a step; llama.cpp reserves memory for the logits of each.
STEP_TOKENS = 256
GPU_STEP_TOKENS = 1024
#: The same for embeddings, fewer if the vocabulary is large; as `embedding_context` does on a processor.
EMBEDDING_STEP_TOKENS = 128
EMBEDDING_LOGITS_BYTES = 64 * 1024 * 1024

#: llama.cpp's names of projectors that make one size of each image, or of each piece of it.
_ONE_SIZE = frozenset(
    (
        *("mlp", "mlp_norm", "ldp", "ldpv2", "adapter", "resampler", "cogvlm", "janus_pro", "gemma3", "gemma3nv", "idefics3"),
        *("internvl", "llama4", "nemotron_v2_vl", "yasa2"),
    )
)
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory for all loaded models together."""

    #: The machine's RAM, without GPUs.
    bytes: int
    source: str
    #: One for each GPU.
    vram: tuple[int, ...] = ()
    #: RAM for prompts that lost their slots. It is not in ``bytes``.
    prompt_cache: int = 0

    @property
    def total(self) -> MemoryBytes:
        return MemoryBytes(self.bytes, sum(self.vram))

    @property
    def fast_bytes(self) -> int:
        """Return the memory of the GPUs, or the RAM of a machine without one."""
        return sum(self.vram) or self.bytes


def measure(setting: int | None, devices: Sequence[Device] = (), *, cache: int | None = 0) -> MemoryBudget:
    """Return the free RAM within the container's limits, and the GPUs' free memory. ``setting`` (MODEL_MEMORY) replaces the RAM, or with
    GPUs theirs. ``cache`` (PROMPT_CACHE_RAM) is the part of the RAM that prompts take, None for a share of it."""
    free = machine.free_memory()
    cache = min(MAX_PROMPT_CACHE_BYTES, round(free * PROMPT_CACHE_SHARE)) if cache is None else cache
    if setting is not None and not devices:
        return MemoryBudget(setting, "MODEL_MEMORY", prompt_cache=cache)
    ram, source = max(0, round(free * (1 - HEADROOM_SHARE)) - cache), f"{amounts.show_bytes(free)} of memory free at the start"
    if not devices:
        return MemoryBudget(ram, source, prompt_cache=cache)
    left = tuple(max(0, device.free_bytes - MARGIN_BYTES) for device in devices)
    if setting is not None:
        shares = tuple(setting * each // max(1, sum(left)) for each in left)
        return MemoryBudget(ram, f"MODEL_MEMORY, {source}", shares, cache)
    names = ", ".join(device.name for device in devices)
    free_vram = amounts.show_bytes(sum(device.free_bytes for device in devices))
    return MemoryBudget(ram, f"{free_vram} free on {names}, {source}", left, cache)


def compute_bytes(header: GgufHeader, *, on_gpu: bool, slots: int, context_tokens: int, has_flash: bool) -> int:
    """Estimate llama.cpp's buffers for a step: for each token, for the logits of each token or, in large steps, of each slot, and for the
    attention of each token to the context."""
    # Twice: where they are computed, and in the output.
    drawn = 2 * lookup.most_outputs(slots)
    step, logits = (GPU_STEP_TOKENS, drawn) if on_gpu else (STEP_TOKENS, max(STEP_TOKENS, drawn))
    # Measured: a mask of two bytes, or without flash attention, a float and one for each head.
    attention = step * context_tokens * (2 if has_flash else (1 + max(header.head_counts, default=0)) * _FLOAT_BYTES)
    return (logits * (header.vocabulary_size or 0) + 8 * step * (header.embedding_length or 0)) * _FLOAT_BYTES + attention


def embedding_bytes(header: GgufHeader, longest: int) -> int:
    """Estimate the second context that the engine creates for the first embedding: room for one text of ``longest`` tokens and a batch of
    others. It counts from the start; else a model loaded meanwhile could take the memory."""
    words = header.vocabulary_size or 0
    width, heads = header.embedding_length or 0, max(header.head_counts, default=0)
    per_token = gguf_header.kv_bytes_per_token(header)
    if per_token == 0:
        # The model reads a text at once without a cache, but compares each token with each.
        return longest * (8 * width + heads * longest) * _FLOAT_BYTES
    batch = min(EMBEDDING_STEP_TOKENS, longest, EMBEDDING_LOGITS_BYTES // (_FLOAT_BYTES * max(1, words)))
    cells = longest + batch
    # The logits of a batch exist twice: where they are computed and in the output.
    return cells * (per_token or 0) + batch * (2 * words + 8 * width + heads * cells) * _FLOAT_BYTES


def projector_bytes(file: Path | None) -> int:
    """Estimate what a file for images needs, with llama.cpp's buffers for the largest image. Blocks."""
    try:
        header = None if file is None else gguf_header.check_parts(file)
    except NotAModel:
        return 0  # a load says why
    if file is None or header is None or (facts := header.projector) is None:
        return 0
    side = facts.image_size if facts.kind in _ONE_SIZE else LONG_SIDE
    patches = (side // max(1, facts.patch_size) + 1) ** 2
    # Measured in floats: 3 widths and one feed-forward layer, of which some models have two, and the pixels.
    return file.stat().st_size + patches * (3 * facts.width + 2 * facts.feed_forward + 3 * facts.patch_size**2) * _FLOAT_BYTES
