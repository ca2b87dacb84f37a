"""Says which libraries of llama.cpp (stack/servers/engine_libraries.py) a machine lacks, what that changes, and how to get them.

Only Python's own modules are imported, because set-up runs it before there are others.
"""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

#: Library -> what happens without it.
WITHOUT = {
    "libaimesh_chat": "thoughts stay in the text, and tools use a form that models don't know",
    "libaimesh_images": "no model sees images",
}


def path(name: str, environment: Path = Path(sys.prefix)) -> Path:
    """Return where a library is in a virtual environment."""
    return environment / "lib" / f"{name}.so"


def find(environment: Path = Path(sys.prefix)) -> str:
    """Describe what is missing; empty if nothing is."""
    missing = [name for name in WITHOUT if not path(name, environment).exists()]
    if not missing:
        return ""
    makefile = Path(__file__).resolve().parents[2] / "Makefile"
    return describe(missing, can_compile=shutil.which("g++") is not None, is_checkout=makefile.exists())


def describe(missing: Iterable[str], *, can_compile: bool, is_checkout: bool, platform: str = sys.platform) -> str:
    """Say what happens without these libraries, and how to get them. Pure."""
    found = "; ".join(f"{name} is missing: {WITHOUT[name]}" for name in missing)
    if not platform.startswith("linux"):
        return f"{found}. They are built on Linux only"
    install = "" if can_compile else "apt-get install g++, then "
    build = "make up (4 minutes)" if is_checkout else "python -m stack.servers.engine_libraries"
    return f"{found}. To build what is missing: {install}{build}"
