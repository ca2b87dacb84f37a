"""What tests need of the machine beside the packages in .venv: a browser, root, other programs.

A test calls ``require("browser")`` before it uses one. Where the capability is missing the test is skipped, and the end of the run lists
it. ``AIMESH_REQUIRE=browser,nat`` makes a missing one an error before the first test.
"""

import difflib
import os
import re
import shutil
from collections.abc import Callable

import pytest

from tests.nat import topology

#: Where Debian puts programs that users have no PATH to.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"))
VARIABLE = "AIMESH_REQUIRE"
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: How the reason of such a skip begins.
_NEEDS = "needs {}: "


def find_program(*names: str) -> str | None:
    """The path of the first of these programs that is installed. Debian gives some another name than upstream."""
    return next((path for name in names if (path := shutil.which(name, path=_PATH)) is not None), None)


def find_browser() -> str | None:
    return find_program(*BROWSERS)


def find_alertmanager() -> str | None:
    return find_program("alertmanager", "prometheus-alertmanager")


def _programs(found: dict[str, str | None]) -> str:
    lacking = [name for name, path in found.items() if path is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def _prometheus() -> str:
    return _programs({name: find_program(name) for name in ("prometheus", "promtool")})


def _alertmanager() -> str:
    return _programs({"alertmanager": find_alertmanager(), "amtool": find_program("amtool")})


#: name -> says why this machine lacks the capability; empty if it has it.
CAPABILITIES: dict[str, Callable[[], str]] = {
    "alertmanager": _alertmanager,
    "browser": lambda: _programs({"chromium": find_browser()}),
    "nat": topology.why_not,
    "pgbouncer": lambda: _programs({"pgbouncer": find_program("pgbouncer")}),
    "prometheus": _prometheus,
    "registry": lambda: _programs({"docker-registry": find_program("docker-registry")}),
    "root": lambda: "" if os.geteuid() == 0 else "the tests do not run as root",
    "systemd": lambda: _programs({"systemd-analyze": find_program("systemd-analyze")}),
}


def require(name: str) -> None:
    """Skip the running test where the machine lacks this capability."""
    if missing := CAPABILITIES[name]():
        pytest.skip(_NEEDS.format(name) + missing)


def find_capability(reason: str) -> str | None:
    """The capability whose absence is the reason of this skip."""
    found = re.search(_NEEDS.format(r"(\w+)") + ".", reason)
    return found[1] if found else None


def find_mistakes(required: str) -> list[str]:
    """What is wrong with a value of AIMESH_REQUIRE on this machine."""
    mistakes = []
    for name in filter(None, (each.strip() for each in required.split(","))):
        if name not in CAPABILITIES:
            near = difflib.get_close_matches(name, CAPABILITIES, 1)
            hint = f"; did you mean {near[0]}?" if near else f": there are {', '.join(CAPABILITIES)}"
            mistakes.append(f"{VARIABLE} names {name}, which is no capability{hint}")
        elif missing := CAPABILITIES[name]():
            mistakes.append(f"{VARIABLE} names {name}, which this machine lacks: {missing}")
    return mistakes
