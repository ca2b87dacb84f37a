"""Asks llama.cpp how to divide a model between GPUs and processor: its ``fit``, which is part of `libaimesh_chat`.

``python -m services.inference.chat.fit`` answers for one load. It is a separate program, because it starts GPU drivers and opens the model,
without memory for it.
"""

import ctypes
import os
import sys
from pathlib import Path

import msgspec

from services.inference.chat.chat_messages import FittedModel
from services.inference.engine import devices
from services.inference.engine.engine_messages import LoadCommand
from shared.telemetry import logs

PROGRAM = (sys.executable, "-P", "-m", "services.inference.chat.fit")
#: A model is opened several times, on a disk that may be slow.
FIT_SECONDS = 120.0

log = logs.get()


async def fitted(load: LoadCommand) -> LoadCommand:
    """Return a load with the model divided as llama.cpp says; unchanged if it can't tell, or if even that doesn't fit."""
    answer = await devices.ask(PROGRAM, FittedModel, seconds=FIT_SECONDS, question=msgspec.msgpack.encode(load))
    if answer is None or not answer.fits:
        return load
    log.info("model_fitted", path=load.path, gpu_layers=answer.gpu_layers, override_tensor=answer.override_tensor)
    return msgspec.structs.replace(
        load,
        gpu_layers=answer.gpu_layers,
        cpu_experts=0,
        tensor_split=answer.tensor_split,
        override_tensor=answer.override_tensor,
    )


def main() -> None:
    import llama_cpp.llama_cpp as native  # noqa: PLC0415 - the worker doesn't need these libraries

    from services.inference.chat.library import ChatLibrary  # noqa: PLC0415
    from services.inference.engine import model_loading  # noqa: PLC0415

    load = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=LoadCommand)
    library = ChatLibrary()
    native.llama_backend_init()
    devices.load_backends()
    model, context = model_loading.parameters_of(msgspec.structs.replace(load, gpu_layers=-1, cpu_experts=0))
    beside = (load.projector, *(adapter.path for adapter in load.adapters))
    margin = devices.MARGIN_BYTES + sum(Path(one).stat().st_size for one in beside if Path(one).is_file())
    answer = library.fit(load.path, ctypes.byref(model), ctypes.byref(context), margin)
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()
    # Beside llama-cpp-python's module, the library may abort at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
