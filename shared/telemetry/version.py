"""Read the version of aimesh. A container has the files without the metadata of an installed package, so the files tell it."""

import importlib.util
import runpy
from functools import cache
from pathlib import Path

#: As a Server header says it.
PROGRAM = "aimesh"
#: Beside version.py in the packages and images of a release.
RELEASE_FILE = "release.txt"


@cache
def version() -> str:
    file = _file("version.py")
    return "unknown" if file is None else str(runpy.run_path(str(file))["__version__"])


@cache
def release_url() -> str:
    """Return the address of the files of the release that runs; empty for a checkout."""
    file = _file(RELEASE_FILE)
    return "" if file is None or not file.exists() else file.read_text(encoding="utf-8").strip()


def _file(name: str) -> Path | None:
    # Without an import of the Python client, which brings an HTTP client.
    package = importlib.util.find_spec("aimesh")
    return None if package is None or package.origin is None else Path(package.origin).with_name(name)
