"""Why a worker ends, asked by a service of a real systemd of a user."""

from pathlib import Path

import pytest

from services.inference import user_logout
from tests import user_systemd

#: Stands in for the worker.
SERVICE = """
import asyncio, os, signal
from services.inference import user_logout

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    open("ready", "w").close()
    await stop.wait()
    found = await user_logout.find_reason()
    with open("found.new", "w") as file:
        file.write(found)
    os.rename("found.new", "found")

asyncio.run(main())
"""
#: Starts it, ends it by COMMAND, and waits until it has said why.
PROGRAM = """
import os, subprocess, sys, time
unit = os.path.expanduser("~/.config/systemd/user/worker.service")
os.makedirs(os.path.dirname(unit))
with open(unit, "w") as file:
    file.write(f"[Service]\\nExecStart={sys.executable} service.py\\nWorkingDirectory={os.getcwd()}\\n"
               f"Environment=PYTHONPATH={os.environ['PYTHONPATH']} PATH={os.getcwd()}:{os.environ['PATH']}\\n")
subprocess.run(["systemctl", "--user", "daemon-reload"], check=True)
subprocess.run(["systemctl", "--user", "start", "worker"], check=True)

def wait(name):
    while not os.path.exists(name):
        time.sleep(0.02)

wait("ready")
subprocess.run(["systemctl", "--user", *COMMAND.split()], check=True)
wait("found")
"""


@pytest.mark.parametrize(
    ("command", "machine", "reason"),
    [
        pytest.param("exit", "running", user_logout.LOGGED_OUT, id="its user logged out"),
        pytest.param("exit", "stopping", "", id="the machine stops"),
        pytest.param("stop worker", "running", "", id="it was stopped"),
    ],
)
def test_a_worker_knows_whether_its_user_has_logged_out(tmp_path: Path, command: str, machine: str, reason: str) -> None:
    """At the log-out, logind stops the user's systemd, as ``systemctl --user exit`` does."""
    (tmp_path / "service.py").write_text(SERVICE, encoding="utf-8")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\n[ "$1" = --system ] && exec echo {machine}\nexec /usr/bin/systemctl "$@"\n', encoding="ascii")
    systemctl.chmod(0o755)
    done = user_systemd.run(f"COMMAND = {command!r}\n{PROGRAM}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found").read_text(encoding="utf-8") == reason


async def test_a_worker_without_systemd_was_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await user_logout.find_reason() == ""
