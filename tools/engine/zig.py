"""The C++ compiler of PyPI's ziglang: it needs no compiler here, and builds for any kind of machine and for old C libraries.

Its C++ library is inside what it builds, so nothing that it builds can pass objects of C++ to the engine.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools import setup_steps

PACKAGE = "ziglang"
LOCK = setup_steps.LOCKS / "zig.lock"
#: As platform.machine() -> words for the compiler. The engine itself needs glibc 2.34, and its oldest variant for x86-64 SSE 4.2.
TARGETS = {
    "x86_64": ("-target", "x86_64-linux-gnu.2.31", "-mcpu=x86_64_v2"),
    "aarch64": ("-target", "aarch64-linux-gnu.2.31"),
}


def describe(machine: str) -> str:
    """Return what decides about the files that it builds."""
    version = LOCK.read_text(encoding="utf-8").partition(f"{PACKAGE}==")[2].split()[0]
    return " ".join((PACKAGE, version, *TARGETS[machine]))


@contextmanager
def installed(machine: str) -> Iterator[tuple[str, ...]]:
    """Install it for a while, since it has 450 MB. Yield the beginning of a command line. Raises SetupFailed."""
    parent = setup_steps.cache_folder().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".zig-", dir=parent) as place:
        words = ("install", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile", "--target", place, "-r", str(LOCK))
        setup_steps.pip("fetching a compiler (100 MB)", *words)
        # `env`, so that it keeps nothing in the user's cache.
        yield ("env", f"ZIG_GLOBAL_CACHE_DIR={place}/cache", str(Path(place) / PACKAGE / "zig"), "c++", *TARGETS[machine])
