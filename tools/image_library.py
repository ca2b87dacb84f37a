"""Build libaimesh_images: llama.cpp's libmtmd, which makes tokens of images, from the sdist that the engine's wheel is built from.

    python -m tools.image_library [--background]

does nothing if the library in .venv is current. Else it compiles what is missing in the cache (60 files of llama.cpp, once). With
--background it returns at once, and models that are loaded later see images. The part of libmtmd that decodes files is left out: the chat
process decodes them (services/inference/images).
"""

import fcntl
import hashlib
import platform
import sys
import tempfile
from pathlib import Path

from stack import chat_library
from tools import chat_library as builds
from tools import setup, setup_steps
from tools.setup_steps import VENV

#: Where services/inference/images/image_library.py loads it from.
LIBRARY = VENV / "lib" / "libaimesh_images.so"
STAMP = VENV / ".aimesh-images"
#: Below llama.cpp's folder.
FOLDER = "tools/mtmd"
SOURCES = ("mtmd.cpp", "mtmd-image.cpp", "mtmd-audio.cpp", "clip.cpp", "models/*.cpp")
HEADERS = (FOLDER, "include", "ggml/include")
KEPT = tuple(f"{folder}/" for folder in HEADERS)
FLAGS = (*chat_library.FLAGS, "-DLLAMA_SHARED", "-DLLAMA_BUILD")
EXPORTS = "{ global: mtmd_*; local: *; };\n"


def cache_folder() -> Path:
    """Return the folder of the source and of what is compiled, named by everything that it is made of."""
    facts = "\n".join([*FLAGS, *SOURCES, chat_library.compiler()])
    name = f"{setup.engine_version()}-{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    return setup.cache_folder().parent / "images" / name


def is_current() -> bool:
    return LIBRARY.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == cache_folder().name


def ensure() -> None:
    """Build the library in .venv if it is not current. Raises SetupFailed."""
    if is_current():
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = folder / "source"
        if not source.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as place:
                _, fetched = builds.fetch_engine_source(Path(place), KEPT)
                fetched.rename(source)
        with setup_steps.progress("building libaimesh_images, llama.cpp's library for images"):
            files = sorted(path for each in SOURCES for path in (source / FOLDER).glob(each))
            headers = [source / each for each in HEADERS]
            objects = chat_library.compile_all(files, source / FOLDER, folder, FLAGS, headers)
            chat_library.link_all(objects, EXPORTS, setup.packages_folder() / "llama_cpp" / "lib", LIBRARY)
    STAMP.write_text(folder.name, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(builds.run("tools.image_library", is_current, ensure, ""))
