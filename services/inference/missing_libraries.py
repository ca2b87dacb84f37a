"""Says which libraries of llama.cpp (stack/servers/engine_libraries.py) a machine lacks, what that changes, and how to get them.

Only Python's own modules are imported, because set-up runs it before there are others.
"""

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


IMAGES = path("libaimesh_images")


def find(environment: Path = Path(sys.prefix)) -> str:
    """Describe what is missing; empty if nothing is."""
    missing = [name for name in WITHOUT if not path(name, environment).exists()]
    if not missing:
        return ""
    makefile = Path(__file__).resolve().parents[2] / "Makefile"
    return describe(missing, is_checkout=makefile.exists())


def describe(missing: Iterable[str], *, is_checkout: bool, platform: str = sys.platform) -> str:
    """Say what happens without these libraries, and how to get them. Pure."""
    found = "; ".join(f"{name} is missing: {WITHOUT[name]}" for name in missing)
    if not platform.startswith("linux"):
        return f"{found}. They are built on Linux only"
    # Workers never compile: the mesh that they were installed from does, in its first minutes.
    get = "make up builds it in the background (4 minutes)" if is_checkout else "aicli update, once the mesh has built it"
    return f"{found}. To get what is missing: {get}"
