"""Lists the devices that this build of llama.cpp can use: ``python -m services.inference.engine.devices`` prints them as JSON.

It is a separate program, because the worker must not load a GPU driver.
"""

import ctypes
import sys
from pathlib import Path

import msgspec

#: GPU and integrated GPU in ggml_backend_dev_type.
_GPU_TYPES = frozenset({1, 2})


class Device(msgspec.Struct, frozen=True):
    """A GPU that llama.cpp can use."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


class FoundDevices(msgspec.Struct, frozen=True):
    devices: tuple[Device, ...]
    built_for_gpu: bool
    #: The processor features that this build uses.
    processor: str


def find() -> FoundDevices:
    """Search for devices. It starts GPU drivers, so only call it in a separate process."""
    import llama_cpp  # noqa: PLC0415 - importers of the types above don't need these libraries
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
