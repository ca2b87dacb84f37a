"""What this build of llama.cpp finds to compute on: ``python -m services.inference.engine.devices`` prints it as JSON and ends.

A program of its own, because the worker that wants to know must not load a GPU's driver itself.
"""

import ctypes
import sys
from pathlib import Path

import msgspec

#: As ggml's ggml_backend_dev_type has them: 0 is the processor, 3 help it.
_GPU_TYPES = frozenset({1, 2})


class Device(msgspec.Struct, frozen=True):
    """A GPU that llama.cpp can use."""

    #: Its name to llama.cpp, such as CUDA0.
    name: str
    description: str
    total_bytes: int
    free_bytes: int


class FoundDevices(msgspec.Struct, frozen=True):
    devices: tuple[Device, ...]
    #: Whether llama.cpp was built for any GPU.
    built_for_gpu: bool
    #: What this build uses of the processor.
    processor: str


def find() -> FoundDevices:
    """Starts the drivers of GPUs; only for a process of its own."""
    import llama_cpp  # noqa: PLC0415 - loads the libraries, which nobody needs who only reads the types above
    import llama_cpp.llama_cpp as native  # noqa: PLC0415

    native.llama_backend_init()
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))))
    registry = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml.*"))))
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    all_devices = [registry.ggml_backend_dev_get(number) for number in range(registry.ggml_backend_dev_count())]
    gpus = tuple(_device(library, device) for device in all_devices if library.ggml_backend_dev_type(device) in _GPU_TYPES)
    processor = native.llama_print_system_info().decode("utf-8", "replace").strip(" |")
    return FoundDevices(gpus, bool(native.llama_supports_gpu_offload()), processor)


def _device(library: ctypes.CDLL, device: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    name, description = (
        call(device).decode("utf-8", "replace") for call in (library.ggml_backend_dev_name, library.ggml_backend_dev_description)
    )
    return Device(name, description, total.value, free.value)


def main() -> None:
    sys.stdout.buffer.write(msgspec.json.encode(find()))


if __name__ == "__main__":
    main()
