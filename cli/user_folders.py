"""The user's folders for aimesh, by the XDG Base Directory Specification; and the machine's."""

from collections.abc import Mapping
from pathlib import Path

#: The state of a worker that is a service of the machine, under its own user.
SYSTEM_WORKER = Path("/var/lib/aimesh-worker")


def config(environment: Mapping[str, str]) -> Path:
    return _folder(environment, "XDG_CONFIG_HOME", ".config")


def state(environment: Mapping[str, str]) -> Path:
    return _folder(environment, "XDG_STATE_HOME", ".local/state")


def cache(environment: Mapping[str, str]) -> Path:
    return _folder(environment, "XDG_CACHE_HOME", ".cache")


def _folder(environment: Mapping[str, str], variable: str, default: str) -> Path:
    chosen = environment.get(variable, "")
    # The specification says to ignore relative paths.
    root = Path(chosen) if chosen.startswith("/") else Path(environment.get("HOME") or "~").expanduser() / default
    return root / "aimesh"
