"""Read the version of aimesh. A container has the files without the metadata of an installed package, so the files tell it."""

import importlib.util
import runpy
from functools import cache
from pathlib import Path


@cache
def version() -> str:
    # Without an import of the Python client, which brings an HTTP client.
    package = importlib.util.find_spec("aimesh")
    if package is None or package.origin is None:
        return "unknown"
    return str(runpy.run_path(str(Path(package.origin).with_name("version.py")))["__version__"])
