"""Our units in a real systemd of a user."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import user_systemd

PRELUDE = """
import os, subprocess, sys
from cli.machines import units
from cli.machines.units import Unit, UnitPlace

def ask(*words):
    return subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, timeout=30).stdout.strip()

def show(name):
    print(name, ask("is-active", "aimesh-serve"), ask("is-enabled", "aimesh-serve"), file=sys.stdout)
    return ask("show", "--property=MainPID", "aimesh-serve")

place = UnitPlace("aimesh-serve", os.environ)
"""

RunThere = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def there(tmp_path: Path) -> RunThere:
    """Runs a program where a systemd of the user runs."""
    return lambda program: user_systemd.run(PRELUDE + program, tmp_path)


def test_a_service_starts_and_restarts_only_when_its_unit_has_changed(there: RunThere) -> None:
    done = there("""
place.install(Unit("test", ("/bin/sleep", "1000"), "2"))
first = show("installed")
place.install(Unit("test", ("/bin/sleep", "1000"), "2"))
assert show("again") == first
place.install(Unit("test", ("/bin/sleep", "2000"), "2"))
second = show("changed")
assert second != first
assert place.restart()
assert show("restarted") != second
place.remove()
show("removed")
assert not place.restart()
assert os.listdir(place.path.parent) == [], os.listdir(place.path.parent)
""")
    assert done.returncode == 0, done.stderr
    states = [line for line in done.stdout.splitlines() if line.split(" ")[0] in {"installed", "again", "changed", "restarted", "removed"}]
    assert states == [
        "installed active enabled",
        "again active enabled",
        "changed active enabled",
        "restarted active enabled",
        "removed inactive ",
    ]
    # There is no logind in the namespaces.
    assert "each start of the machine." not in done.stderr
    assert "It runs now, until you log out." in done.stderr
    assert done.stderr.splitlines()[-1] == "loginctl enable-linger root"


#: What loginctl does if the user may, and if only root may, who has done so or not. It writes down whether the service runs by then.
ALLOWED = "exit 0"
DONE_BY_ROOT = '[ "$1" = show-user ] && echo yes'
REFUSED = '[ "$1" = show-user ] && echo no'


@pytest.mark.parametrize(("loginctl", "stays"), [(ALLOWED, True), (DONE_BY_ROOT, True), (REFUSED, False)])
def test_a_service_is_said_to_stay_only_if_it_does(there: RunThere, tmp_path: Path, loginctl: str, *, stays: bool) -> None:
    """It was said of every service, before systemd was asked, and most people may not let theirs linger."""
    program = tmp_path / "bin" / "loginctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nsystemctl --user is-active aimesh-serve >>{tmp_path}/said\n{loginctl}\n", encoding="ascii")
    program.chmod(0o755)
    done = there(f"""
os.environ["PATH"] = "{program.parent}:" + os.environ["PATH"]
place.install(Unit("test", ("/bin/sleep", "1000"), "2"))
""")
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "said").read_text(encoding="ascii").split()) == {"inactive"}, "linger comes first"
    last = done.stderr.splitlines()[-1]
    assert last == ("It runs now, and after each start of the machine." if stays else "loginctl enable-linger root")


def test_a_service_that_was_stopped_stays_so_at_an_update(there: RunThere) -> None:
    done = there("""
place.install(Unit("test", ("/bin/sleep", "1000"), "2"))
ask("stop", "aimesh-serve")
assert not place.restart()
show("stopped")
""")
    assert "stopped inactive enabled" in done.stdout, done.stderr


def test_a_refusal_of_systemd_is_said(there: RunThere) -> None:
    done = there("""
place.install(Unit("test", ("/bin/sleep", "1000"), "2", more="ExecStart=relative\\n"))
""")
    assert done.returncode != 0
    assert "BadSettings: systemctl restart aimesh-serve: " in done.stderr


def test_a_program_that_ends_at_once_is_said(there: RunThere) -> None:
    done = there("""
place.install(Unit("test", ("/bin/sh", "-c", "sleep 0.3; exit 2"), "2"))
""")
    assert done.returncode != 0
    assert "BadSettings: aimesh-serve has started and ended" in done.stderr
    assert "It runs now" not in done.stderr
