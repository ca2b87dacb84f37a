"""Plans how a model is loaded: GPUs, layers, experts, context, slots and replicas, with a reason for each.  Pure.

The rules, unless the model's entry or the worker's settings decide:

- A slot has the model's own context, at most 32,768 tokens on a GPU and 8,192 on a processor. It is halved down to 2,048 until two
  slots fit.
- There are as many slots as fit: at most 32 on a GPU and 4 on a processor. Models that fit the memory together share what their
  weights leave.
- For agents, a slot of 65,536 tokens comes before a second one and before the share of other models, if need be with keys and values in
  q8_0. On a GPU with room for two slots of more, they have up to 131,072.
- A model that is too large for the GPUs first moves experts to the processor, then whole layers, then everything. It keeps 8,192 tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from services.inference.engine import engine_messages
from services.inference.engine.engine_messages import KV_BLOCKS, KvMode, KvType, KvTypes, SplitMode
from services.inference.models import memory
from services.inference.models.catalog import SERVER_SLOTS, CatalogEntry
from services.inference.models.memory import MemoryBudget
from services.inference.models.quantities import MemoryBytes
from shared.amounts import show_bytes
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.types import LoadPurpose

#: The most context of a slot by default, and the least that a lack of memory leaves.
GPU_CONTEXT_TOKENS = 32_768
CPU_CONTEXT_TOKENS = 8_192
MIN_CONTEXT_TOKENS = 2_048
#: For agents on a GPU; a processor would take hours to read so much.
AGENTS_CONTEXT_TOKENS = 131_072
#: The longest text to embed of a model for agents: embeddings have their own context.
AGENTS_EMBEDDING_TOKENS = 8_192
GPU_SLOTS = 32
CPU_SLOTS = 4
#: The context is halved until these fit.
MIN_SLOTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    context_tokens: int
    slots: int
    #: -1 for all.
    gpu_layers: int
    #: The first layers, whose experts stay on the processor.
    cpu_experts: int
    #: The GPU of each replica; None for all GPUs, or none.
    devices: tuple[int | None, ...]
    #: For one replica.
    need: MemoryBytes
    kv_type: KvTypes | None = None
    #: The longest text to embed; None for a slot's context.
    embedding_tokens: int | None = None
    #: A sentence for each decision.
    reasons: tuple[str, ...] = ()
    #: A GPU is used, and nobody has set how.
    may_fit: bool = False

    @property
    def total(self) -> MemoryBytes:
        """The need of all replicas."""
        return MemoryBytes(self.need.ram * len(self.devices), self.need.vram * len(self.devices))


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a GPU computes of a model."""

    layers: int
    cpu_experts: int


def plan(
    header: GgufHeader, file_bytes: int, entry: CatalogEntry, budget: MemoryBudget, others: Sequence[int] = (), *, projector_bytes: int = 0
) -> LoadPlan:
    """``file_bytes`` is the size of all parts of a split model, whose header only describes the first, and of its adapters; ``others`` are
    the sizes of the worker's other models, and ``projector_bytes`` is what its file for images needs."""
    planner = partial(_Planner, header, file_bytes, entry, budget, others=others, projector_bytes=projector_bytes)
    device = 0 if entry.device is None and entry.split_mode is SplitMode.NONE else entry.device
    gpus = tuple(range(len(budget.vram))) if device is None else (device,)
    if entry.gpu_layers == 0 or not any(budget.vram[gpu : gpu + 1] for gpu in gpus):
        gpus = ()
    together = planner(gpus=gpus).plan()
    if entry.replicas is None and len(gpus) > 1 and not entry.tensor_split:
        # The smallest GPU must do for a whole model.
        smallest = min(gpus, key=lambda gpu: budget.vram[gpu])
        alone = planner(gpus=(smallest,)).plan()
        is_enough = entry.purpose is LoadPurpose.CHATS or alone.context_tokens >= min(together.context_tokens, CONTEXT_TOKENS)
        if is_enough and alone.need.vram and (alone.gpu_layers, alone.cpu_experts) == (-1, 0):
            reasons = (*alone.reasons, f"replicas: {len(gpus)}, one for each GPU, because a GPU has room for the model")
            return replace(alone, devices=gpus, reasons=reasons)
    return _repeated(together, entry, budget, device if gpus else entry.device)


def _repeated(one: LoadPlan, entry: CatalogEntry, budget: MemoryBudget, device: int | None) -> LoadPlan:
    """Plan as many replicas as are set and fit."""
    fit = 1 if entry.replicas is None else entry.replicas
    while fit > 1 and not MemoryBytes(one.need.ram * fit, one.need.vram * fit).fits(budget.total):
        fit -= 1
    reason = f"replicas: {fit}" + ("" if entry.replicas in (None, fit) else f" of {entry.replicas}, for lack of memory")
    return replace(one, devices=(device,) * fit, reasons=(*one.reasons, reason))


def of_program(entry: CatalogEntry, budget: MemoryBudget) -> LoadPlan:
    """Plan a model that another server runs, in the memory that its entry states."""
    need = MemoryBytes(0, entry.memory_bytes or 0) if any(budget.vram) else MemoryBytes(entry.memory_bytes or 0)
    context, slots = entry.context_tokens or 0, entry.slots or SERVER_SLOTS
    one = LoadPlan(context_tokens=context, slots=slots, gpu_layers=-1, cpu_experts=0, devices=(None,), need=need)
    return _repeated(one, entry, budget, None)


@dataclass
class _Planner:
    """Plans one replica on these GPUs."""

    header: GgufHeader
    file_bytes: int
    entry: CatalogEntry
    budget: MemoryBudget
    others: Sequence[int]
    projector_bytes: int
    gpus: tuple[int, ...]

    def __post_init__(self) -> None:
        self._room = MemoryBytes(self.budget.bytes, sum(self.budget.vram[gpu] for gpu in self.gpus if gpu < len(self.budget.vram)))
        self._weights = max(self.file_bytes, 1)
        # A part's header only describes its own tensors, so their sizes are scaled.
        scale = self._weights / max(1, self.header.tensor_bytes) if self.header.split_count > 1 else 1.0
        self._layers = self.header.block_count or 1
        #: The experts of one layer; 0 without experts.
        self._experts = round(self.header.expert_bytes * scale) // self._layers
        self._kv = self.entry.kv_type or KvTypes(KvType.F16)
        self._token_bytes = gguf_header.kv_bytes_per_token(self.header, self._kv.keys.value, (self._kv.values or self._kv.keys).value) or 0
        #: The context that one slot must have before there is a second one; 0 if there is none.
        self._enough = 0

    def plan(self) -> LoadPlan:
        is_for_agents = self.entry.purpose is LoadPurpose.AGENTS
        cpu_cap, gpu_cap = (CONTEXT_TOKENS, AGENTS_CONTEXT_TOKENS) if is_for_agents else (CPU_CONTEXT_TOKENS, GPU_CONTEXT_TOKENS)
        cap = gpu_cap if self.gpus else cpu_cap
        own = self.header.context_length or cap
        context = min(self.entry.context_tokens or cap, own)
        least = context if self.entry.context_tokens else min(MIN_CONTEXT_TOKENS, context)
        cut = self._choose_cut(least, max(least, min(context, CPU_CONTEXT_TOKENS)))
        if is_for_agents:
            self._enough = max(least, min(context, CONTEXT_TOKENS))
            with_enough = self._choose_cut(self._enough, self._enough)
            cut = with_enough if self._fits(with_enough, self._enough, self._least_slots(self._enough)) else cut
        if not cut.layers and not self.entry.context_tokens:
            context = min(context, cpu_cap)
        most = context
        while context > least and not self._fits(
            cut, context, self._least_slots(context), beside=() if context <= self._enough else self.others
        ):
            context = max(least, context // 2, self._enough if context > self._enough else 0)
        is_whole = cut.layers == self._layers
        is_divided = bool(self.gpus) and not (is_whole and not cut.cpu_experts) and not self._is_set
        has_blocks = not any((length or 0) % KV_BLOCKS[KvType.Q8_0] for length in (self.header.key_length, self.header.value_length))
        may_quantize = self.entry.kv_type is None and has_blocks
        if is_for_agents and may_quantize and (context < self._enough or is_divided):
            return replace(self, entry=replace(self.entry, kv_type=KvTypes(KvType.Q8_0))).plan()
        slots, why_slots = self._slots(cut, context)
        need = self._need(cut, context, slots)
        is_set = self._is_set or self.entry.tensor_split or self.entry.override_tensor or self.entry.split_mode is SplitMode.ROW
        if self.entry.memory_bytes is not None:
            need = MemoryBytes(0, self.entry.memory_bytes) if cut.layers else MemoryBytes(self.entry.memory_bytes, 0)
        return LoadPlan(
            context_tokens=context,
            slots=slots,
            gpu_layers=(-1 if is_whole else cut.layers) if self.gpus else self.entry.gpu_layers,
            cpu_experts=cut.cpu_experts,
            devices=(None,),
            need=need,
            kv_type=self._kv,
            embedding_tokens=self._embedded(context),
            may_fit=bool(cut.layers and not is_set),
            reasons=(
                self._placing(cut),
                self._why_context(context, most, own),
                f"slots: {slots}, {why_slots}",
                *((f"adapters: {len(self.entry.adapters)}, in memory with the model",) if self.entry.adapters else ()),
                f"context in memory: {self._kv}, {self._token_bytes / 1024:.1f} KiB per token",
                f"memory: {need} of {self._room}" + ("" if self.entry.memory_bytes is None else ", as set"),
                *([f"images: by {self.entry.projector.name}, {show_bytes(self.projector_bytes)}"] if self.entry.projector else []),
            ),
        )

    @property
    def _is_set(self) -> bool:
        return self.entry.gpu_layers >= 0 or self.entry.cpu_experts is not None

    def _cuts(self) -> Iterator[_Cut]:
        """Yield the ways to divide the model, the fastest first."""
        if not self.gpus:
            yield _Cut(0, 0)
            return
        given = self.entry.cpu_experts
        most = min(given, self._layers) if given is not None else (self._layers if self._experts else 0)
        layers = self._layers if self.entry.gpu_layers < 0 else min(self.entry.gpu_layers, self._layers)
        yield from (_Cut(layers, experts) for experts in range(most if given is not None else 0, most + 1))
        if self.entry.gpu_layers < 0:
            yield from (_Cut(fewer, most) for fewer in range(layers - 1, -1, -1))

    def _choose_cut(self, least: int, useful: int) -> _Cut:
        """A model that doesn't fit with the ``least`` context is slower anyway, and so gets a ``useful`` one."""
        cut, whole = _Cut(0, 0), _Cut(self._layers, 0)
        for cut in self._cuts():
            tokens = least if cut == whole else useful
            if self._fits(cut, tokens, self._least_slots(tokens)):
                break
        # The last is the processor alone, or what is set; the budget says whether it may be loaded.
        return cut

    def _slots(self, cut: _Cut, context: int) -> tuple[int, str]:
        """Return the slots and the reason."""
        if self.entry.slots:
            return self.entry.slots, "as set"
        most, where = (GPU_SLOTS, "GPU") if cut.layers == self._layers else (CPU_SLOTS, "processor")
        fit = next((count for count in range(most, 1, -1) if self._fits(cut, context, count, beside=self.others)), 1)
        return fit, f"the most on a {where}" if fit == most else "as many as fit"

    def _least_slots(self, context: int) -> int:
        return self.entry.slots or (1 if context <= self._enough else MIN_SLOTS)

    def _embedded(self, context: int) -> int | None:
        return min(context, AGENTS_EMBEDDING_TOKENS) if self._enough else None

    def _fits(self, cut: _Cut, context: int, slots: int, *, beside: Sequence[int] | None = None) -> bool:
        """With ``beside``, leave these models and other replicas their part."""
        room, need = self._room, self._need(cut, context, slots)
        if beside is not None:
            others = sum(beside)
            total = room.vram if cut.layers else room.ram
            left = total - self._weights - others
            total = total - others - left + left // (1 + len(beside)) if others and left > 0 else total
            total = min(total // (self.entry.replicas or 1), self.entry.memory_bytes or total)
            room = MemoryBytes(room.ram, total) if cut.layers else MemoryBytes(total, room.vram)
        return need.fits(room)

    def _need(self, cut: _Cut, context: int, slots: int) -> MemoryBytes:
        # The output counts as one more layer, as in llama.cpp.
        share = 1.0 if cut.layers == self._layers else cut.layers / (self._layers + 1)
        experts = self._experts * min(cut.cpu_experts, cut.layers)
        on_gpu = max(0, round(self._weights * share) - experts)
        kv = slots * context * self._token_bytes
        kv_on_gpu = round(kv * cut.layers / self._layers)
        has_flash = bool(cut.layers) or not engine_messages.reads_fast(self.entry.kv_mode or KvMode.EXACT, self._kv, slots)
        buffers = (
            memory.compute_bytes(self.header, on_gpu=bool(cut.layers), slots=slots, context_tokens=context, has_flash=has_flash)
            + memory.embedding_bytes(self.header, self._embedded(context) or context)
            + self.projector_bytes
        )
        ram = self._weights - on_gpu + kv - kv_on_gpu + memory.PROCESS_BYTES
        return MemoryBytes(ram, on_gpu + kv_on_gpu + buffers) if cut.layers else MemoryBytes(ram + buffers, 0)

    def _placing(self, cut: _Cut) -> str:
        if not self.gpus:
            return "devices: the processor, " + ("as set" if self.entry.gpu_layers == 0 else "because there is no GPU for llama.cpp")
        place = f"GPU {self.gpus[0]}" if len(self.gpus) == 1 else f"{len(self.gpus)} GPUs"
        size = show_bytes(self._weights)
        if not cut.layers:
            return f"devices: the processor, because the model's {size} don't fit {place} in part either"
        whole = cut.layers == self._layers
        text = f"devices: {f'all {self._layers}' if whole else f'{cut.layers} of {self._layers}'} layers on {place}"
        if cut.cpu_experts:
            text += f", but the experts of {cut.cpu_experts} layers on the processor"
        if self._is_set:
            return f"{text}, as set"
        return text if whole and not cut.cpu_experts else f"{text}, because {size} don't fit {show_bytes(self._room.vram)}"

    def _why_context(self, context: int, most: int, own: int) -> str:
        text = f"context: {context} tokens per slot, "
        if self.entry.context_tokens:
            return text + ("as set" if context == self.entry.context_tokens else "the model's own")
        if context < most:
            why = "for lack of memory" if self._enough else f"so that {self._least_slots(context)} slots fit"
            return f"{text}reduced from {most}, {why}"
        return text + ("the model's own" if context == own else "the default")
