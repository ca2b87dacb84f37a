"""Write a copy of the default model in Q8_0: `python -m services.inference.models.requantize`, once, at set-up.

It comes in Q4_1, for which llama.cpp has no fast kernels on processors. In Q8_0, it is up to 1.6 times as fast and as good
(docs/decisions/0011).
"""

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as native

from services.inference.engine import devices
from services.inference.models import model_discovery


def requantize(source: Path, target: Path) -> None:
    """Write the target, whole or not at all. Raises OSError if llama.cpp can't."""
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype = native.LLAMA_FTYPE_MOSTLY_Q8_0
    parameters.allow_requantize = True
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".requantizing-") as folder:
        copy = Path(folder) / target.name
        native.llama_backend_init()
        devices.load_backends()
        if code := native.llama_model_quantize(os.fsencode(source), os.fsencode(copy), ctypes.byref(parameters)):
            raise OSError(f"llama.cpp could not write {target} (code {code})")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.replace(target)


def main() -> int:
    source = model_discovery.installed()
    target = model_discovery.fast_copy(source)
    if target.is_file() and target.stat().st_mtime >= source.stat().st_mtime:
        return 0
    try:
        requantize(source, target)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
