"""Write install.sh and install.ps1 for one mesh or one release, from the template and what its package index has. Pure."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

#: What `tools.packages.install_index` writes last into the folder of an index.
INDEX_FILE = "index.json"
#: Of packages: for each role, and the plug-in for GPUs.
LISTS = ("client", "mesh", "front", "worker", "vulkan")
_PYTHONS = ("3.11", "3.13", "3.12", "3.14")


def _targets(*machines: str) -> tuple[str, ...]:
    return tuple(f"{machine}-{python}" for machine in machines for python in _PYTHONS)


#: The kinds of machines that an index has packages for, the most usual first: role, system and machine as `uname -sm` names them, Python.
DEFAULT_TARGETS = _targets(
    *("client-linux-x86_64", "worker-linux-x86_64", "client-darwin-arm64", "client-darwin-x86_64", "client-windows-amd64"),
    *("front-darwin-arm64", "front-darwin-x86_64", "front-windows-amd64"),
)
#: With those that are fetched when such a machine asks.
TARGETS = (*DEFAULT_TARGETS, *_targets("front-linux-x86_64", "client-linux-aarch64", "front-linux-aarch64", "worker-linux-aarch64"))
_TEMPLATES = Path(__file__).parent
#: Also PowerShell has `echo` and `exit`.
_NOT_READY = """\
#!/bin/sh
echo "aimesh was not installed: this mesh is not ready, it is still fetching its packages. Run the line again in a minute."
exit 1
"""


def default_folder() -> Path:
    """Return the folder of the index in a virtual environment or an image."""
    return Path(sys.prefix) / "install"


class PackageIndex(msgspec.Struct, frozen=True, kw_only=True):
    #: The name of pip's own wheel: Debian's python3 comes without pip.
    pip: str
    #: Of pip's wheel and of each list.
    sha256: Mapping[str, str]
    #: The targets whose packages are all there.
    ready: tuple[str, ...]


def render(index: PackageIndex | None, mesh: str, *, base: str | None = None, ca: str = "", name: str = "install.sh") -> str:
    """Return the script. ``base`` is where lists and pip are; without it, packages come from the mesh's own index.

    Raises ValueError for what can't be in a shell's single quotes. ``name`` is that of the script.
    """
    # After an update, the index may still be that of the version before.
    if index is None or not {f"{name}.txt" for name in LISTS} <= index.sha256.keys():
        return _NOT_READY
    values = {
        "MESH": mesh,
        "BASE": base or f"{mesh}/install",
        "INDEX": "" if base else f"{mesh}/install/simple",
        "READY": "" if base else " ".join(index.ready),
        "PIP": index.pip,
        "CA": ca.strip(),
        "PIP_SHA256": index.sha256[index.pip],
        **{f"{name.upper()}_SHA256": index.sha256[f"{name}.txt"] for name in LISTS},
    }
    if unsafe := [name for name, value in values.items() if "'" in value]:
        raise ValueError(f"{', '.join(unsafe)} has a quote")
    return re.sub(r"@([A-Z0-9_]+)@", lambda found: values[found[1]], (_TEMPLATES / name).read_text(encoding="utf-8"))
