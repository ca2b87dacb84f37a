"""Loads a model into llama.cpp and creates its context; uses fewer GPU layers or a shorter context if the memory doesn't suffice.

Only the engine's process imports this module.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as native

from services.inference.engine import gguf_header
from services.inference.engine.engine_messages import KvType, LoadCommand
from services.inference.engine.kv_slots import KvMode

#: Per slot, unless the setting or a smaller model limits it: memory grows with slots × context.
DEFAULT_CONTEXT_TOKENS = 2048
#: A context that doesn't fit is halved down to this.
LEAST_CONTEXT_TOKENS = 512
GPU_SHARES = (0.75, 0.5, 0.25, 0.0)
#: Prompt tokens in a step without answers. Unlike a GPU, a processor isn't faster with more.
CPU_STEP_TOKENS = 128
GPU_STEP_TOKENS = 1024
_ERROR_LEVEL = 4
_KV_TYPES = {KvType.F16: native.GGML_TYPE_F16, KvType.Q8_0: native.GGML_TYPE_Q8_0}
#: GGML_TYPE_BF16 of ggml.h, which the Python binding lacks.
_BF16 = 30
#: The length of llama.cpp's arrays with one number per GPU.
_MOST_DEVICES = 16


class LoadRefused(Exception):
    """The file is not a usable model, or doesn't fit the memory; the message says why."""


class NativeLog:
    """Collects errors and the use of GPUs from llama.cpp's log."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=5)
        #: Lines about the devices and their layers; empty without a GPU.
        self.gpu: list[str] = []

    def record(self, level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR_LEVEL:
            self._errors.append(line)
        elif "using device" in line or "layers to GPU" in line:
            self.gpu.append(line.partition(": ")[2])

    def why(self) -> str:
        return "; ".join(self._errors) or "llama.cpp gave no reason"

    def forget(self) -> None:
        """Drop the lines of a failed try."""
        self._errors.clear()
        self.gpu.clear()


@dataclass(frozen=True, slots=True)
class NativeModel:
    model: "native.llama_model_p"
    context: "native.llama_context_p"
    #: The context of a slot; in the FAST layout a sequence may have more.
    slot_tokens: int
    #: What was reduced for lack of memory, for people; empty if nothing was.
    lowered: str


@contextmanager
def loaded(load: LoadCommand, log: NativeLog, progressed: Callable[[float], None]) -> Iterator[NativeModel]:
    """Raises LoadRefused."""
    with _model(load, log, progressed) as (model, fewer_layers), _context(model, load, log) as (context, tokens, shorter):
        yield NativeModel(model, context, tokens, "; ".join(one for one in (fewer_layers, shorter) if one))


@contextmanager
def _model(load: LoadCommand, log: NativeLog, progressed: Callable[[float], None]) -> Iterator[tuple["native.llama_model_p", str]]:
    def report(progress: float, _user: object) -> bool:
        progressed(progress)
        return True

    callback = native.llama_progress_callback(report)
    lowered = ""
    model = _load_file(load, load.gpu_layers, callback)
    if not model and load.gpu_layers and native.llama_supports_gpu_offload():
        for layers in _fewer_layers(load):
            log.forget()
            if model := _load_file(load, layers, callback):
                lowered = f"only {layers} layers are on the GPU, for lack of memory"
                break
    if not model:
        raise LoadRefused(f"llama.cpp cannot load {load.path}: {log.why()}")
    try:
        yield model, lowered
    finally:
        native.llama_model_free(model)


def _load_file(load: LoadCommand, gpu_layers: int, callback: object) -> "native.llama_model_p | None":
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    parameters.progress_callback = callback
    if load.device is not None:
        parameters.split_mode, parameters.main_gpu = native.LLAMA_SPLIT_MODE_NONE, load.device
    if load.tensor_split:
        parameters.tensor_split = (ctypes.c_float * _MOST_DEVICES)(*load.tensor_split[:_MOST_DEVICES])
    return native.llama_model_load_from_file(load.path.encode(), parameters) or None


def _fewer_layers(load: LoadCommand) -> list[int]:
    path = Path(load.path)
    with path.open("rb") as file:
        blocks = gguf_header.read_header(file, path.stat().st_size).block_count or 0
    return sorted({int(blocks * share) for share in GPU_SHARES}, reverse=True)


@contextmanager
def _context(model: "native.llama_model_p", load: LoadCommand, log: NativeLog) -> Iterator[tuple["native.llama_context_p", int, str]]:
    wanted = tokens = min(load.context_tokens or DEFAULT_CONTEXT_TOKENS, native.llama_model_n_ctx_train(model))
    while not (context := native.llama_init_from_model(model, _context_parameters(load, tokens))):
        if tokens <= LEAST_CONTEXT_TOKENS:
            raise LoadRefused(
                f"not enough memory for {load.slots} slots of {tokens} tokens: {log.why()}; lower ENGINE_SLOTS, or use a smaller model"
            )
        log.forget()
        tokens = max(LEAST_CONTEXT_TOKENS, tokens // 2)
    try:
        yield context, tokens, "" if tokens == wanted else f"a context has {tokens} instead of {wanted} tokens, for lack of memory"
    finally:
        native.llama_free(context)


def _context_parameters(load: LoadCommand, tokens: int) -> native.llama_context_params:
    parameters: native.llama_context_params = native.llama_context_default_params()
    parameters.n_ctx = tokens * load.slots
    step = GPU_STEP_TOKENS if _on_gpu(load) else CPU_STEP_TOKENS
    # In a step, each slot may add a token of its answer to what is read.
    parameters.n_batch = parameters.n_ubatch = step + load.slots
    parameters.n_seq_max = load.slots
    parameters.n_outputs_max = load.slots
    parameters.n_threads = parameters.n_threads_batch = load.threads
    parameters.kv_unified = load.kv_mode is KvMode.FAST
    parameters.type_k = parameters.type_v = _KV_TYPES[load.kv_type]
    if load.kv_type is KvType.F16 and not _on_gpu(load):
        # If keys are f16 and values aren't, a processor computes the attention of each token separately and in the same order, whatever
        # else is in the batch (docs/decisions/0011). It is also faster.
        parameters.type_v = _BF16
    return parameters


def _on_gpu(load: LoadCommand) -> bool:
    return bool(native.llama_supports_gpu_offload() and load.gpu_layers)
