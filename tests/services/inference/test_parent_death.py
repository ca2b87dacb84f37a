"""A worker and its children, as real processes of one unprivileged user."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyhyperswarm import sidecar_process

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what it asks of the kernel is Linux's")

#: What a compromised child can learn about its worker. Its arguments are an address in the worker's memory and a length.
CHILD = """
import json, os, sys
worker, (place, length) = os.getppid(), map(int, sys.argv[1:])
def attempt(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
def memory():
    with open(f"/proc/{worker}/mem", "rb", buffering=0) as file:
        file.seek(place)
        return file.read(length).decode()
print(json.dumps({
    "environ": attempt(lambda: "canary" in open(f"/proc/{worker}/environ").read()),
    "memory": attempt(memory),
    "open file": attempt(lambda: os.readlink(f"/proc/{worker}/fd/0")),
    "maps": attempt(lambda: len(open(f"/proc/{worker}/maps").read()) > 0),
}))
"""

#: A worker that seals itself like all services do (tests/shared/node/test_sealed_services.py), and runs a child before and after.
WORKER = """
import ctypes, json, os, subprocess, sys
from pathlib import Path
from shared import processes
libc = ctypes.CDLL(None)
prompt = ctypes.create_string_buffer(b"what a user wrote")
def ask():
    place = [str(ctypes.addressof(prompt)), str(len(prompt.value))]
    found = subprocess.run([sys.executable, "-c", CHILD, *place], check=True, capture_output=True, text=True).stdout
    return json.loads(found) | {"dumpable": libc.prctl(3, 0, 0, 0, 0)}
before = ask()
processes.seal()
print(json.dumps([before, ask(), os.readlink("/proc/self/fd/0")]))
"""

#: Tests may run as root, which may inspect everything. This drops all capabilities (PR_CAPBSET_DROP) of the program that follows.
UNPRIVILEGED = """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def test_child_of_the_same_user_cannot_inspect_its_worker() -> None:
    program = WORKER.replace("CHILD", repr(CHILD))
    ended = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, program],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": "canary"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    before, after, own_file = json.loads(ended.stdout)
    # With Yama, the worker's memory is protected in any case.
    assert before.pop("memory") in ("what a user wrote", "PermissionError")
    assert before == {"environ": True, "open file": "/dev/null", "maps": True, "dumpable": 1}, "nothing was there to protect"
    assert after == dict.fromkeys(("environ", "memory", "open file", "maps"), "PermissionError") | {"dumpable": 0}
    assert own_file == "/dev/null", "it still sees itself"


def test_child_of_the_same_user_cannot_inspect_the_sidecar() -> None:
    """Node.js can't seal itself, so set-up makes its program unreadable."""
    program = f"""
import json, subprocess
node = subprocess.Popen([{str(sidecar_process.find_node())!r}, "-e", "process.stdin.resume(); console.log(1)"],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
node.stdout.readline()
try:
    open(f"/proc/{{node.pid}}/mem", "r+b").close()
    print("open")
except OSError as error:
    print(type(error).__name__)
node.stdin.close()
node.wait()
"""
    ended = subprocess.run([sys.executable, "-c", UNPRIVILEGED, program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "PermissionError\n"


def test_child_ends_with_its_parent() -> None:
    child = (
        "import os, signal; from shared import confinement as lifeline\n"
        "lifeline.die_with(os.getppid())\nprint('up', flush=True)\nsignal.pause()"
    )
    parent = (
        "import signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        descriptor = os.pidfd_open(pid)
        process.send_signal(signal.SIGKILL)
    try:
        # Readable once the process has ended.
        assert select.select([descriptor], [], [], 10)[0]
    finally:
        os.close(descriptor)
