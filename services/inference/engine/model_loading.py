"""Has llama.cpp load a model and make its context, with less of either where the memory does not do. Only the engine imports it."""

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as native

from services.inference.engine.engine_messages import KvType, LoadCommand
from services.inference.engine.gguf import gguf_header
from services.inference.engine.kv_slots import KvMode

#: Per slot, where neither the setting nor a smaller model says otherwise: memory grows with slots × context.
DEFAULT_CONTEXT_TOKENS = 2048
#: A context that does not fit is halved down to this; a conversation needs so much.
LEAST_CONTEXT_TOKENS = 512
#: Of the layers: what is tried on GPUs, where not all of them fit.
GPU_SHARES = (0.75, 0.5, 0.25, 0.0)
#: Of prompts, in one step when nobody else is answering. A processor is no faster with more; a GPU is.
CPU_STEP_TOKENS = 128
GPU_STEP_TOKENS = 1024
_ERROR_LEVEL = 4
_KV_TYPES = {KvType.F16: native.GGML_TYPE_F16, KvType.Q8_0: native.GGML_TYPE_Q8_0}
#: ggml.h: GGML_TYPE_BF16, which the Python wrapper does not have.
_BF16 = 30
#: llama.cpp's arrays of one number per GPU are so long.
_MOST_DEVICES = 16


class LoadRefused(Exception):
    """The file is no usable model, or does not fit the memory; the message says why."""


class NativeLog:
    """What llama.cpp says, of which the reasons of errors and the use of a GPU are worth keeping."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=5)
        #: The devices and the number of layers on them; empty without a GPU.
        self.gpu: list[str] = []

    def take(self, level: int, text: bytes, _user: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR_LEVEL:
            self._errors.append(line)
        elif "using device" in line or "layers to GPU" in line:
            self.gpu.append(line.partition(": ")[2])

    def why(self) -> str:
        return "; ".join(self._errors) or "llama.cpp gave no reason"

    def forget(self) -> None:
        """What was said of a try that failed, before the next one."""
        self._errors.clear()
        self.gpu.clear()


@dataclass(frozen=True, slots=True)
class NativeModel:
    model: "native.llama_model_p"
    context: "native.llama_context_p"
    #: The context that each slot was meant to have; in one pool a sequence may have more.
    slot_tokens: int
    #: What it got less of than was asked for, for people; empty when it got all.
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
                lowered = f"only {layers} layers are on the GPU: there is no memory for more"
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
                f"no memory for {load.slots} slots of {tokens} tokens: {log.why()}; lower ENGINE_SLOTS, or take a smaller model"
            )
        log.forget()
        tokens = max(LEAST_CONTEXT_TOKENS, tokens // 2)
    try:
        yield context, tokens, "" if tokens == wanted else f"a context has {tokens} tokens and not {wanted}: there is no memory for more"
    finally:
        native.llama_free(context)


def _context_parameters(load: LoadCommand, tokens: int) -> native.llama_context_params:
    parameters: native.llama_context_params = native.llama_context_default_params()
    parameters.n_ctx = tokens * load.slots
    step = GPU_STEP_TOKENS if _on_gpu(load) else CPU_STEP_TOKENS
    # Every slot may add its own token to what is read.
    parameters.n_batch = parameters.n_ubatch = step + load.slots
    parameters.n_seq_max = load.slots
    parameters.n_outputs_max = load.slots
    parameters.n_threads = parameters.n_threads_batch = load.threads
    parameters.kv_unified = load.kv_mode is KvMode.FAST
    parameters.type_k = parameters.type_v = _KV_TYPES[load.kv_type]
    if load.kv_type is KvType.F16 and not _on_gpu(load):
        # Where keys are f16 and values are not, a processor computes the attention of each token by itself and in one order, whatever
        # else is in the batch (docs/decisions/0011). It is the faster way, too.
        parameters.type_v = _BF16
    return parameters


def _on_gpu(load: LoadCommand) -> bool:
    return bool(native.llama_supports_gpu_offload() and load.gpu_layers)
