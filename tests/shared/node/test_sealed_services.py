"""No process of the same user may look into the memory of a service."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.types import SERVICE_NAMES

ROOT = Path(__file__).parents[3]
#: Without settings a service ends at once. 3 is PR_GET_DUMPABLE.
PROGRAM = """
import atexit, ctypes, runpy, sys
atexit.register(lambda: print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are sealed on Linux")
@pytest.mark.parametrize("service", sorted(SERVICE_NAMES.values()))
def test_each_service_is_sealed_before_it_reads_its_settings(service: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"services.{service}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == "0\n"
