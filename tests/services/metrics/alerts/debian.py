"""The programs of Debian's Prometheus and Alertmanager packages; `make test` puts them there."""

import shutil
import subprocess
from pathlib import Path


def program(name: str, *others: str) -> str:
    """Its path. Debian gives some programs another name than upstream."""
    found = next((path for each in (name, *others) if (path := shutil.which(each)) is not None), None)
    assert found is not None, f"{name} is not there: python3 tools/setup.py system"
    return found


def check(name: str, *arguments: str | Path) -> str:
    """What a program says of a file that is in order."""
    done = subprocess.run([program(name), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
