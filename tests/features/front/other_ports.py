"""Has a test's machine look for servers at free ports: the usual ones may be another test's, or those of the developer's own Ollama."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.front.rules.local_servers import PROGRAMS
from tests.stacks import REPOSITORY
from tests.testnet import free_port

#: Each Python process of the machine loads it first.
_SITE = """
from features.front.rules import local_servers
local_servers.PROGRAMS = tuple(each._replace(port={ports}[each.kind]) for each in local_servers.PROGRAMS)
"""


def choose(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Return a free port for each kind, and the environment in which programs look there."""
    ports = {program.kind: free_port() for program in PROGRAMS}
    site = folder / "other-ports"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE.format(ports=ports), encoding="utf-8")
    return ports, {"PYTHONPATH": f"{site}{os.pathsep}{REPOSITORY}"}


@contextmanager
def standin(module: str, port: int, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server of a machine until the block ends."""
    command = [sys.executable, "-m", f"tests.features.front.{module}", str(port), *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"listening\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
