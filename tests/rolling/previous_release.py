"""The previous release, from the commit in ``tests/rolling/previous``, in an environment made from its own lock files.

The environment is made once, in ~/.cache/aimesh/rolling, in a minute or two, and gets the wheel of this release's engine.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.stacks import REPOSITORY, Release
from tools import setup_steps
from tools.engine import compiled

COMMIT = Path(__file__).with_name("previous").read_text(encoding="utf-8").strip()
SETUP_SECONDS = 1200.0


def find() -> Release:
    """Return the previous release. Skips the test if git does not have the commit, as in a shallow clone."""
    folder = setup_steps.cache_folder().parent / "rolling" / COMMIT
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "Makefile").exists():
            _unpack(folder)
        _share_engine()
        # Quick if it was done before. The caller's own environment must not be taken for the checkout's.
        environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
        words = [sys.executable, "-m", "tools.setup", "runtime"]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SETUP_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Release(str(folder / ".venv" / "bin" / "python"), folder)


def _share_engine() -> None:
    """Copy this release's compiled engine; otherwise the old release would compile unused parts of the same llama.cpp for ten minutes."""
    place = setup_steps.cache_folder() / compiled.build_key("cpu")
    place.mkdir(parents=True, exist_ok=True)
    for wheel in compiled.wheel_folder("cpu").glob("*.whl"):
        shutil.copy(wheel, place)


def _unpack(folder: Path) -> None:
    archive = subprocess.run(["git", "archive", COMMIT], cwd=REPOSITORY, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"git has no commit {COMMIT[:12]} here: {archive.stderr.decode().strip()[:200]}")
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(part, filter="data")
    shutil.rmtree(folder)
    part.rename(folder)
