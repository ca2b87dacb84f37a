"""The programs of Prometheus and Alertmanager; `make test-system` installs Debian's."""

import subprocess
from pathlib import Path

from tests import capabilities

_CAPABILITIES = {"prometheus": "prometheus", "promtool": "prometheus", "alertmanager": "alertmanager", "amtool": "alertmanager"}


def program(name: str) -> str:
    """Return the path of this program. Skips the test if the program is not installed."""
    capabilities.require(_CAPABILITIES[name])
    found = capabilities.find_alertmanager() if name == "alertmanager" else capabilities.find_program(name)
    assert found is not None
    return found


def check(name: str, *arguments: str | Path) -> str:
    """Run a program's check of a file that must be valid. Returns the output."""
    done = subprocess.run([program(name), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
