"""A real systemd of a user, which sees only its own processes and /run. There is no systemd of the machine beside it, and no logind."""

import subprocess
import sys
from pathlib import Path

from tests import capabilities
from tests.stopwatch import HANG_SECONDS
from tests.tiers import ROOT

#: Run in the namespaces: systemd for a user, then a program.
START = """
set -eu
mount -t tmpfs none /run
mkdir -p /run/systemd/system
mkdir -m 700 /run/user-systemd
export XDG_RUNTIME_DIR=/run/user-systemd
"$1" --user &
shift
tries=0
until systemctl --user show-environment >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ]
    sleep 0.05
done
"$@"
"""


def run(program: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """Run a Python program where it runs. Skips the test if this machine can't."""
    capabilities.require("nat")
    capabilities.require("systemd")
    environment = {"HOME": str(home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT), "USER": "root"}
    words = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    command = (*words, "sh", "-c", START, "sh", str(capabilities.SYSTEMD), sys.executable, "-c", program)
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
