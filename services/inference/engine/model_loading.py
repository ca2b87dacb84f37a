"""Loads a model into llama.cpp and creates its context; uses fewer GPU layers or a shorter context if the memory doesn't suffice.

Only the engine's process imports this module.
"""

import ctypes
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native

from services.inference import numerics
from services.inference.engine import devices, engine_messages, lookup
from services.inference.engine.engine_messages import KV_BLOCKS, KvMode, KvType, LoadCommand
from services.inference.engine.kv_slots import KvLayout
from services.inference.images.image_encoder import ImageEncoder, NotUsable
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader, NotAModel

#: A context that doesn't fit is halved down to this.
MIN_CONTEXT_TOKENS = 512
GPU_SHARES = (0.75, 0.5, 0.25, 0.0)
#: Prompt tokens in a step without answers. Unlike a GPU, a processor isn't faster with more.
CPU_STEP_TOKENS = 128
#: In llama.cpp's list of instructions: this processor multiplies bf16 faster than f16.
_FAST_BF16 = b"AVX512_BF16 = 1"
GPU_STEP_TOKENS = 1024
_ERROR_LEVEL = 4
_CAUSAL = re.compile(r"\bcausal_attn\s*= ([01])$")
#: GGML_TYPE_BF16 is 30 in ggml.h; the Python binding lacks it.
_KV_TYPES = {KvType.F16: native.GGML_TYPE_F16, KvType.BF16: 30, KvType.Q8_0: native.GGML_TYPE_Q8_0, KvType.Q4_0: native.GGML_TYPE_Q4_0}
#: Weights whose products have the same bits for one token and for several.
_EXACT_WEIGHTS = frozenset({"q4_0", "q4_1", "q8_0"})
#: The names of a layer's experts.
_EXPERTS = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
#: The length of llama.cpp's arrays with one number per GPU.
_MAX_DEVICES = 16


class LoadRefused(Exception):
    """The file is not a usable model, or doesn't fit the memory; the message says why."""


class NativeLog:
    """Collects errors, the use of GPUs and the attention of the newest context from llama.cpp's log."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=5)
        #: Lines about the devices and their layers; empty without a GPU.
        self.gpu: list[str] = []
        #: Whether its tokens only see those before them; None before there is a context.
        self.is_causal: bool | None = None

    def record(self, level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR_LEVEL:
            self._errors.append(line)
        elif "using device" in line or "layers to GPU" in line:
            self.gpu.append(line.partition(": ")[2])
        elif found := _CAUSAL.search(line):
            self.is_causal = found[1] == "1"

    def why(self) -> str:
        return "; ".join(self._errors) or "llama.cpp gave no reason"

    def forget(self) -> None:
        """Drop the lines of a failed try."""
        self.forget_errors()
        self.gpu.clear()

    def forget_errors(self) -> None:
        self._errors.clear()


@contextmanager
def native_log() -> Iterator[NativeLog]:
    """Collect llama.cpp's log, also that of its backends, which are loaded if they weren't."""
    log = NativeLog()
    callback = native.llama_log_callback(log.record)
    native.llama_log_set(callback, ctypes.c_void_p(0))
    native.llama_backend_init()
    devices.load_backends()
    try:
        yield log
    finally:
        # The callback object must outlive every native call that may log.
        native.llama_log_set(native.llama_log_callback(0), ctypes.c_void_p(0))


class NativeBatch:
    """llama.cpp's arrays of one batch. Slices are assigned in C; single elements would cost a microsecond each."""

    def __init__(self, tokens: int) -> None:
        self._batch: native.llama_batch = native.llama_batch_init(tokens, 0, 1)
        self._token = (native.llama_token * tokens).from_address(ctypes.addressof(self._batch.token.contents))
        self._position = (native.llama_pos * tokens).from_address(ctypes.addressof(self._batch.pos.contents))
        self._outputs = (ctypes.c_int8 * tokens).from_address(ctypes.addressof(self._batch.logits.contents))
        counts = (ctypes.c_int32 * tokens).from_address(ctypes.addressof(self._batch.n_seq_id.contents))
        counts[:] = [1] * tokens
        #: Each token's list of sequences, which always has one.
        self._slots = [self._batch.seq_id[at] for at in range(tokens)]

    def filled(self, pieces: Iterable[tuple[int, int, Sequence[int], Sequence[int]]]) -> native.llama_batch:
        """Put pieces of sequences into it: the slot, the position of the first token, the tokens, and for each whether it has an output."""
        at = 0
        for slot, position, tokens, outputs in pieces:
            end = at + len(tokens)
            self._token[at:end] = list(tokens)
            self._position[at:end] = list(range(position, position + len(tokens)))
            self._outputs[at:end] = list(outputs)
            for row in range(at, end):
                self._slots[row][0] = slot
            at = end
        self._batch.n_tokens = at
        return self._batch

    def free(self) -> None:
        native.llama_batch_free(self._batch)


@dataclass(frozen=True, slots=True)
class NativeModel:
    model: "native.llama_model_p"
    context: "native.llama_context_p"
    #: The context of a slot; in the POOL layout a sequence may have more.
    slot_tokens: int
    #: What was reduced for lack of memory, for people; empty if nothing was.
    lowered: str
    adapters: tuple["NativeAdapter", ...] = ()
    #: None for a model that sees no images.
    images: ImageEncoder | None = None


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    #: None if it can't be used.
    adapter: Any
    scale: float
    #: Why it can't be used.
    problem: str = ""


@contextmanager
def loaded(load: LoadCommand, log: NativeLog, progressed: Callable[[float], None]) -> Iterator[NativeModel]:
    """Raises LoadRefused."""
    with ExitStack() as opened:
        model, fewer_layers = _model(load, log, progressed)
        opened.callback(native.llama_model_free, model)
        images, blind = _image_encoder(model, load, log)
        if images is not None:
            opened.callback(images.free)
        # A context reserves memory for the adapters that its model has.
        adapters = tuple(_adapters(model, load, log, progressed))
        most_rows = 0 if images is None or not images.is_whole else images.most_rows()
        context, tokens, shorter = _context(model, load, log, most_rows)
        opened.callback(native.llama_free, context)
        lowered = "; ".join(one for one in (fewer_layers, blind, shorter) if one)
        yield NativeModel(model, context, tokens, lowered, adapters, images)


def _adapters(
    model: "native.llama_model_p", load: LoadCommand, log: NativeLog, progressed: Callable[[float], None]
) -> Iterator[NativeAdapter]:
    """Load the adapters, which are freed with the model."""
    problems = gguf_header.check_adapters(Path(load.path), [Path(adapter.path) for adapter in load.adapters]) if load.adapters else ()
    for wanted, problem in zip(load.adapters, problems, strict=True):
        progressed(1.0)
        adapter = None if problem else native.llama_adapter_lora_init(model, wanted.path.encode())
        yield NativeAdapter(adapter or None, wanted.scale, problem or ("" if adapter else f"llama.cpp refused {wanted.path}: {log.why()}"))


def _image_encoder(model: "native.llama_model_p", load: LoadCommand, log: NativeLog) -> tuple[ImageEncoder | None, str]:
    """Return also why there is none, if the projector is optional. Raises LoadRefused if it is required."""
    if not load.projector:
        return None, ""
    try:
        if gguf_header.check_parts(Path(load.projector)).architecture != gguf_header.PROJECTOR:
            raise NotUsable(f"{load.projector} is not a projector")
        return ImageEncoder(model, load.projector, log.record, log.why, threads=load.threads, on_gpu=on_gpu(load)), ""
    except (NotUsable, NotAModel) as error:
        if not load.projector_is_optional:
            raise LoadRefused(str(error)) from error
        log.forget_errors()
        return None, f"it sees no images: {error}"


def _model(load: LoadCommand, log: NativeLog, progressed: Callable[[float], None]) -> tuple["native.llama_model_p", str]:
    """Return also what was reduced. Raises OSError if nobody is left to hear of the progress."""
    failed: list[OSError] = []

    def report(progress: float, _user: object) -> bool:
        # ctypes would print what a callback raises, and llama.cpp would load on.
        try:
            progressed(progress)
        except OSError as error:
            failed.append(error)
        return not failed

    callback = native.llama_progress_callback(report)
    lowered = ""
    model = _load_file(load, load.gpu_layers, callback)
    if failed:
        raise failed[0]
    if not model and load.gpu_layers and native.llama_supports_gpu_offload():
        for layers in _fewer_layers(load):
            log.forget()
            if model := _load_file(load, layers, callback):
                lowered = f"only {layers} layers are on the GPU, for lack of memory"
                break
    if not model:
        raise LoadRefused(f"llama.cpp cannot load {load.path}: {log.why()}")
    return model, lowered


def parameters_of(load: LoadCommand) -> tuple[Any, native.llama_context_params]:
    """Return the parameters of a load, without overrides, for llama.cpp's ``fit``."""
    return _model_parameters(load), _context_parameters(load, load.context_tokens)


def _load_file(load: LoadCommand, gpu_layers: int, callback: object) -> "native.llama_model_p | None":
    parameters = _model_parameters(load)
    parameters.n_gpu_layers = gpu_layers
    parameters.progress_callback = callback
    overrides = _overrides(load)
    parameters.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    return native.llama_model_load_from_file(load.path.encode(), parameters) or None


def _model_parameters(load: LoadCommand) -> Any:
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = load.gpu_layers
    if load.split_mode is not None:
        parameters.split_mode = getattr(native, f"LLAMA_SPLIT_MODE_{load.split_mode.name}")
    if load.device is not None:
        parameters.split_mode, parameters.main_gpu = native.LLAMA_SPLIT_MODE_NONE, load.device
    if load.tensor_split:
        parameters.tensor_split = (ctypes.c_float * _MAX_DEVICES)(*load.tensor_split[:_MAX_DEVICES])
    return parameters


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override of llama.h, which the Python binding lacks."""

    _fields_ = (("pattern", ctypes.c_char_p), ("kind", ctypes.c_void_p))


def _overrides(load: LoadCommand) -> "ctypes.Array[_Override]":
    """Return llama.cpp's list of tensors on chosen devices; an empty one ends it. Raises LoadRefused."""
    written = [*load.override_tensor, *(_EXPERTS.format(layer) for layer in range(load.cpu_experts))]
    listed = (_Override * (len(written) + 1))()
    for at, text in enumerate(written):
        pattern, _, device = text.rpartition("=")
        if (kind := devices.buffer_type(device)) is None:
            raise LoadRefused(f"override_tensor names {device}, but llama.cpp has no such device here")
        listed[at] = _Override(pattern.encode(), kind)
    return listed


def metadata(model: "native.llama_model_p", key: str) -> str:
    """Return a short value of the model's header; empty if it has none."""
    value = ctypes.create_string_buffer(64)
    found = native.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode("utf-8", "replace") if found >= 0 else ""


def check(header: GgufHeader, load: LoadCommand) -> None:
    """Raises LoadRefused if the cache can't have the wanted types."""
    keys, values = load.kv_type
    for kind, length in ((keys, header.key_length), (values or keys, header.value_length)):
        if length is not None and length % KV_BLOCKS.get(kind, 1):
            raise LoadRefused(
                f"kv_type {kind} stores blocks of {KV_BLOCKS[kind]}, but this model's heads have {length} numbers; use f16 or bf16"
            )


def _fewer_layers(load: LoadCommand) -> list[int]:
    blocks = gguf_header.check_parts(Path(load.path)).block_count or 0
    return sorted({int(blocks * share) for share in GPU_SHARES}, reverse=True)


def _context(model: "native.llama_model_p", load: LoadCommand, log: NativeLog, whole: int) -> tuple["native.llama_context_p", int, str]:
    """Return also a slot's tokens, and what was reduced. ``whole`` is the number of tokens that a batch must hold at least."""
    wanted = tokens = min(load.context_tokens, native.llama_model_n_ctx_train(model))
    while not (context := native.llama_init_from_model(model, _context_parameters(load, tokens, whole))):
        if tokens <= MIN_CONTEXT_TOKENS:
            raise LoadRefused(
                f"not enough memory for {load.slots} slots of {tokens} tokens: {log.why()}; lower ENGINE_SLOTS, or use a smaller model"
            )
        log.forget()
        tokens = max(MIN_CONTEXT_TOKENS, tokens // 2)
    return context, tokens, "" if tokens == wanted else f"a context has {tokens} instead of {wanted} tokens, for lack of memory"


def _context_parameters(load: LoadCommand, tokens: int, whole: int = 0) -> native.llama_context_params:
    parameters: native.llama_context_params = native.llama_context_default_params()
    parameters.n_ctx = tokens * load.slots
    # In a step, each slot may add a token of its answer to what is read.
    parameters.n_batch = parameters.n_ubatch = max(step_tokens(load) + load.slots, whole)
    parameters.n_seq_max = load.slots
    parameters.n_outputs_max = lookup.most_outputs(load.slots)
    parameters.n_threads = parameters.n_threads_batch = load.threads
    parameters.kv_unified = layout_of(load) is KvLayout.POOL
    # On a GPU, layers with a window only keep that. It saves memory, but few prompts that begin alike find their prefix. A processor reads
    # prompts slowly, and in `exact` the order of sums must not depend on reused cells.
    parameters.swa_full = not on_gpu(load)
    keys, values = load.kv_type
    parameters.type_k, parameters.type_v = _KV_TYPES[keys], _KV_TYPES[values or keys]
    if reads_fast(load):
        parameters.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if values is None and _has_fast_bf16():
            parameters.type_k = parameters.type_v = _KV_TYPES[KvType.BF16]
    elif load.kv_mode is KvMode.EXACT and load.kv_type == (KvType.F16, None) and not on_gpu(load):
        # If keys and values have different types, a processor computes the attention of each token separately and in the same order,
        # whatever else is in the batch. Which order is faster depends on the compiler, too (docs/decisions/0011).
        if _has_fast_bf16() and devices.engine_build().is_prebuilt:
            parameters.type_k = _KV_TYPES[KvType.BF16]
        else:
            parameters.type_v = _KV_TYPES[KvType.BF16]
    return parameters


def _has_fast_bf16() -> bool:
    return _FAST_BF16 in native.llama_print_system_info()


def numerics_of(load: LoadCommand, log: NativeLog) -> str:
    """Identify what this process computes with (`numerics`)."""
    used = _context_parameters(load, load.context_tokens)
    maps = Path("/proc/self/maps")
    engine, features = devices.engine_build(), native.llama_print_system_info().decode()
    processor = numerics.group(maps.read_text() if maps.exists() else "", engine.numeric_groups, features)
    # Only some variants of a group multiply keys in bf16 by one instruction.
    has_bf16 = used.type_k == _KV_TYPES[KvType.BF16] and _has_fast_bf16()
    context = (used.type_k, used.type_v, used.flash_attn_type, used.kv_unified, has_bf16)
    return numerics.identify(engine.build, processor, log.gpu, context)


def computes_exactly(load: LoadCommand) -> bool:
    """Whether a processor computes the same bits for a token alone and for several of a sequence at once (docs/decisions/0011)."""
    used = _context_parameters(load, load.context_tokens)
    is_plain = used.type_k != used.type_v or used.type_k in (native.GGML_TYPE_Q8_0, native.GGML_TYPE_Q4_0)
    return is_plain and gguf_header.check_parts(Path(load.path)).matrix_types <= _EXACT_WEIGHTS


def layout_of(load: LoadCommand) -> KvLayout:
    # Without flash attention, each token of a step would pass over the cells of all slots in a pool, as it also does on a GPU.
    is_pool = load.kv_mode is KvMode.SHARED and not reads_fast(load) and not on_gpu(load)
    return KvLayout.POOL if is_pool else KvLayout.STREAMS


def reads_fast(load: LoadCommand) -> bool:
    return engine_messages.reads_fast(load.kv_mode, load.kv_type, load.slots) and not on_gpu(load)


def step_tokens(load: LoadCommand) -> int:
    return GPU_STEP_TOKENS if on_gpu(load) else CPU_STEP_TOKENS


def on_gpu(load: LoadCommand) -> bool:
    return bool(native.llama_supports_gpu_offload() and load.gpu_layers)
