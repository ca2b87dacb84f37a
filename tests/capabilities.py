"""What tests need from the machine besides the packages in .venv: a browser, root, other programs.

A test calls ``require("browser")`` before it uses a browser. If the machine lacks this capability, the test is skipped, and the end of
the run lists it. ``AIMESH_REQUIRE=browser,nat`` makes a missing capability an error before the first test.
"""

import ctypes
import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from services.inference import gpus
from tests.nat import topology

#: The programs of `make deploy-tools`, and Debian's folders that are missing from a user's PATH.
_TOOLS = Path(__file__).resolve().parent.parent / ".tools"
SEARCH_PATH = os.pathsep.join((str(_TOOLS / "bin"), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"))
VARIABLE = "AIMESH_REQUIRE"
#: Runs for a user, too, without being the system's.
SYSTEMD = Path("/lib/systemd/systemd")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: Start of the reason for such a skip.
_NEEDS = "needs {}: "


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed. Debian renames some."""
    return next((path for name in names if (path := shutil.which(name, path=SEARCH_PATH)) is not None), None)


def find_browser() -> str | None:
    return find_program(*BROWSERS)


def find_package(name: str) -> Path | None:
    """Return the folder of an npm package that `make deploy-tools` installed."""
    folder = _TOOLS / "node_modules" / name
    return folder if folder.is_dir() else None


def find_alertmanager() -> str | None:
    return find_program("alertmanager", "prometheus-alertmanager")


def _proxy(*names: str) -> str:
    """Check for a proxy and for the ACME server that issues its certificate."""
    return _programs({name: find_program(name) for name in (*names, "pebble", "pebble-challtestsrv")})


def _programs(found: dict[str, str | None]) -> str:
    lacking = [name for name, path in found.items() if path is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def _prometheus() -> str:
    return _programs({name: find_program(name) for name in ("prometheus", "promtool")})


def _alertmanager() -> str:
    return _programs({"alertmanager": find_alertmanager(), "amtool": find_program("amtool")})


def _hcl() -> str:
    names = ("@cdktf/hcl2json", "@cdktf/provider-google")
    found = {name: str(found) if (found := find_package(name)) else None for name in names}
    return _programs({"node": find_program("node"), **found})


def _kubernetes_schemas() -> str:
    found = {name: str(found) if (found := find_package(name)) else None for name in ("@kubernetes-models/keda", "@kubernetes-models/gke")}
    return _programs({"kubernetes-validate": find_program("kubernetes-validate"), "node": find_program("node"), **found})


def find_rego() -> str | None:
    """Return the Python of `make deploy-tools` if it has the library regopy."""
    python = shutil.which("python", path=str(_TOOLS / "bin"))
    found = python and subprocess.run([python, "-c", "import regopy"], capture_output=True, check=False, timeout=60).returncode == 0
    return python if found else None


def _containers() -> str:
    if os.geteuid() != 0:
        return "the tests do not run as root"
    names = ("dockerd", "docker", "debootstrap", "iptables-save", "docker-compose", "podman", "podman-compose")
    return _programs({name: find_program(name) for name in names})


def _vulkan() -> str:
    """A driver, which may be Debian's for processors, and the library that finds it."""
    try:
        ctypes.CDLL(gpus.VULKAN)
    except OSError:
        return f"not installed: {gpus.VULKAN}"
    if not gpus.look().has_plug_ins:
        return "not available: a plug-in for this processor"
    drivers = [*Path("/usr/share/vulkan/icd.d").glob("*.json"), *filter(None, [os.environ.get("VK_ICD_FILENAMES")])]
    return "" if drivers else "not installed: a driver for Vulkan, such as mesa-vulkan-drivers"


#: Name -> returns why this machine lacks the capability; empty if it has it.
CAPABILITIES: dict[str, Callable[[], str]] = {
    "actionlint": lambda: _programs({"actionlint": find_program("actionlint")}),
    "alertmanager": _alertmanager,
    "browser": lambda: _programs({"chromium": find_browser()}),
    "caddy": partial(_proxy, "caddy"),
    "checkov": lambda: _programs({"checkov": find_program("checkov")}),
    "containers": _containers,
    "etcd": lambda: _programs({"etcd": find_program("etcd")}),
    "haproxy": partial(_proxy, "haproxy", "certbot"),
    "hcl": _hcl,
    "helm": lambda: _programs({"helm": find_program("helm")}),
    "kubernetes_schemas": _kubernetes_schemas,
    "nat": topology.why_not,
    "nginx": partial(_proxy, "nginx", "certbot"),
    "pgbouncer": lambda: _programs({"pgbouncer": find_program("pgbouncer")}),
    "prometheus": _prometheus,
    "rego": lambda: "" if find_rego() else "not installed: regopy",
    "registry": lambda: _programs({"docker-registry": find_program("docker-registry")}),
    "roots": lambda: "the tests do not run as root" if os.geteuid() else _programs({"debootstrap": find_program("debootstrap")}),
    "root": lambda: "" if os.geteuid() == 0 else "the tests do not run as root",
    "skopeo": lambda: _programs({"skopeo": find_program("skopeo")}),
    "systemd": lambda: _programs(
        {"systemd-analyze": find_program("systemd-analyze"), "systemd": str(SYSTEMD) if SYSTEMD.exists() else None}
    ),
    "terraform": lambda: _programs({"terraform": find_program("terraform")}),
    "traefik": partial(_proxy, "traefik"),
    "vulkan": _vulkan,
}


def require(name: str) -> None:
    """Skip the running test if the machine lacks this capability."""
    if missing := CAPABILITIES[name]():
        pytest.skip(_NEEDS.format(name) + missing)


def find_capability(reason: str) -> str | None:
    """Return the capability whose absence caused this skip."""
    found = re.search(_NEEDS.format(r"(\w+)") + ".", reason)
    return found[1] if found else None


def find_mistakes(required: str) -> list[str]:
    """Return what is wrong with a value of AIMESH_REQUIRE on this machine."""
    mistakes = []
    for name in filter(None, (each.strip() for each in required.split(","))):
        if name not in CAPABILITIES:
            near = difflib.get_close_matches(name, CAPABILITIES, 1)
            hint = f"; did you mean {near[0]}?" if near else f": there are {', '.join(CAPABILITIES)}"
            mistakes.append(f"{VARIABLE} names {name}, which is no capability{hint}")
        elif missing := CAPABILITIES[name]():
            mistakes.append(f"{VARIABLE} names {name}, which this machine lacks: {missing}")
    return mistakes
