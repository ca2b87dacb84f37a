"""The sidecar's own JavaScript tests, so that `make test` runs all tests."""

import os
import subprocess

from pyhyperswarm import sidecar_process

SECONDS = 60
#: Limit on the sidecar's code: what can be written in Python is written in Python.
MAX_LINES = 1000


def test_the_tests_of_the_sidecar_pass() -> None:
    sidecar = sidecar_process.find_sidecar().parent
    # Node accepts a file pattern itself, but takes a folder for a module: no shell is needed.
    command = [str(sidecar_process.find_node()), "--test", "--test-reporter=spec", "test/*.test.js"]
    done = subprocess.run(
        command, cwd=sidecar, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "tests 0\n" not in done.stdout


def test_the_sidecar_stays_small() -> None:
    programs = sidecar_process.SIDECAR.glob("*.js")
    lines = [line.strip() for program in programs for line in program.read_text(encoding="utf-8").splitlines()]
    assert len([line for line in lines if line and not line.startswith(("//", "/*", "*"))]) <= MAX_LINES
