"""The seccomp filter in a small interpreter that behaves like the kernel's, and a real confined process."""

import errno
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from shared import confinement
from shared.confinement import ALLOW, KILL, MACHINES

PID = 4321
ROOT = Path(__file__).parents[2]
X86, ARM = MACHINES["x86_64"], MACHINES["aarch64"]
THREAD, NEW_USER_NAMESPACE = 0x00010000, 0x10000000


def fails(number: int) -> int:
    return 0x00050000 | number


def verdict(
    machine: confinement.CpuArchitecture, number: int, *arguments: int, local_sockets: bool = False, audit: int | None = None
) -> int:
    """Return the filter's verdict on a call, by the rules of linux/filter.h."""
    program = confinement.filter_program(machine, own_pid=PID, local_sockets=local_sockets)
    call = struct.pack("<IIQ6Q", number, machine.audit if audit is None else audit, 0, *arguments, *(0,) * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", program))
    at, word = 0, 0
    while True:
        code, then, otherwise, value = steps[at]
        at += 1
        match code:
            case 0x06:
                return int(value)
            case 0x20:
                (word,) = struct.unpack_from("<I", call, value)
            case 0x15:
                at += then if word == value else otherwise
            case 0x35:
                at += then if word >= value else otherwise
            case 0x45:
                at += then if word & value else otherwise
            case _:
                raise AssertionError(f"no instruction: {code:#x}")


@pytest.mark.parametrize(
    ("machine", "number", "arguments", "expected"),
    [
        pytest.param(X86, 41, (socket.AF_INET,), fails(errno.EACCES), id="no internet"),
        pytest.param(ARM, 198, (10,), fails(errno.EACCES), id="no internet on ARM, nor its sixth version"),
        pytest.param(X86, 41, (16,), fails(errno.EACCES), id="no messages to the kernel"),
        pytest.param(X86, 41, (socket.AF_UNIX,), fails(errno.EACCES), id="no sockets of this machine without a GPU"),
        pytest.param(X86, 53, (socket.AF_UNIX,), fails(errno.EACCES), id="no pair of them either"),
        pytest.param(X86, 59, (), fails(errno.EPERM), id="no other program"),
        pytest.param(ARM, 221, (), fails(errno.EPERM), id="no other program on ARM"),
        pytest.param(X86, 322, (), fails(errno.EPERM), id="no other program by a descriptor"),
        pytest.param(X86, 57, (), fails(errno.EPERM), id="no process of its own"),
        pytest.param(X86, 56, (17,), fails(errno.EPERM), id="no process of its own by clone"),
        pytest.param(ARM, 220, (NEW_USER_NAMESPACE | 17,), fails(errno.EPERM), id="no user that it is not"),
        pytest.param(X86, 56, (0x3D0F00,), ALLOW, id="threads as glibc makes them"),
        pytest.param(ARM, 220, (0x3D0F00,), ALLOW, id="threads on ARM"),
        pytest.param(X86, 435, (), fails(errno.ENOSYS), id="clone3 is not there, so clone is taken"),
        pytest.param(X86, 101, (), fails(errno.EPERM), id="no look into other processes"),
        pytest.param(X86, 310, (), fails(errno.EPERM), id="nor into their memory"),
        pytest.param(X86, 321, (), fails(errno.EPERM), id="no code in the kernel"),
        pytest.param(X86, 425, (), fails(errno.EPERM), id="no ring that does it all by other means"),
        pytest.param(X86, 165, (), fails(errno.EPERM), id="no mounts"),
        pytest.param(ARM, 40, (), fails(errno.EPERM), id="no mounts on ARM"),
        pytest.param(X86, 90, (), fails(errno.EPERM), id="opens no file to others"),
        pytest.param(ARM, 53, (), fails(errno.EPERM), id="opens no file to others on ARM"),
        pytest.param(X86, 452, (), fails(errno.EPERM), id="nor by the newer call"),
        pytest.param(X86, 188, (), fails(errno.EPERM), id="nor by an access list"),
        pytest.param(ARM, 54, (), fails(errno.EPERM), id="gives no file away"),
        pytest.param(X86, 62, (PID - 1, 9), fails(errno.EPERM), id="kills nobody"),
        pytest.param(X86, 62, (0xFFFFFFFFFFFFFFFF, 9), fails(errno.EPERM), id="kills not everybody"),
        pytest.param(X86, 234, (PID, PID, 6), ALLOW, id="may abort"),
        pytest.param(ARM, 131, (PID, PID, 6), ALLOW, id="may abort on ARM"),
        pytest.param(X86, 16, (0, 0x5412), fails(errno.EPERM), id="types nothing into the terminal"),
        pytest.param(X86, 16, (5, 0xC020462A), ALLOW, id="speaks to a GPU driver"),
        pytest.param(X86, 0, (), ALLOW, id="reads"),
        pytest.param(X86, 257, (), ALLOW, id="opens files"),
        pytest.param(X86, 0x40000000 | 41, (socket.AF_INET,), fails(errno.EPERM), id="no calls of the kind x32"),
    ],
)
def test_filter_program(machine: confinement.CpuArchitecture, number: int, arguments: tuple[int, ...], expected: int) -> None:
    assert verdict(machine, number, *arguments) == expected


def test_gpu_driver_may_only_use_local_sockets() -> None:
    assert verdict(X86, 41, socket.AF_UNIX, local_sockets=True) == ALLOW
    assert verdict(X86, 41, socket.AF_INET, local_sockets=True) == fails(errno.EACCES)
    # The kernel uses only the lower half of the number.
    assert verdict(X86, 41, (1 << 32) | socket.AF_INET, local_sockets=True) == fails(errno.EACCES)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_system_calls_of_another_architecture_end_the_process(machine: confinement.CpuArchitecture) -> None:
    """A 64-bit process can make 32-bit calls, whose numbers mean something else."""
    assert verdict(machine, 0, audit=0x40000003) == KILL


TRIES = """
import ctypes, errno, json, os, resource, socket, subprocess, sys, threading
from pathlib import Path
from shared import landlock
from shared import confinement
model, secret, venv = sys.argv[1:]
assert landlock.restrict([Path(model)]) == ""
confinement.confine(local_sockets=False)
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def attempt(name, what):
    try:
        what()
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
def native(status):
    if status < 0:
        raise OSError(ctypes.get_errno(), "")
attempt("internet", lambda: socket.socket(socket.AF_INET))
attempt("local socket", lambda: socket.socket(socket.AF_UNIX))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("fork", os.fork)
attempt("program", lambda: subprocess.run(["/bin/true"]))
attempt("kill the worker", lambda: os.kill(os.getppid(), 0))
attempt("ptrace", lambda: native(libc.ptrace(16, os.getppid(), 0, 0)))
attempt("unshare", lambda: native(libc.unshare(0x10000000)))
attempt("file", lambda: open(json.__file__).close())
attempt("model", lambda: open(model).close())
attempt("key beside the model", lambda: open(secret).close())
attempt("list of keys", lambda: os.listdir(os.path.dirname(secret)))
attempt("key in the checkout", lambda: os.listdir(os.getcwd()))
attempt("write the model", lambda: open(model, "r+").close())
attempt("new package", lambda: open(os.path.join(venv, "x.pth"), "w").close())
attempt("remove the model", lambda: os.unlink(model))
attempt("chmod", lambda: os.chmod(secret, 0o644))
attempt("chmod by a descriptor", lambda: os.fchmod(os.open(model, os.O_RDONLY), 0o666))
attempt("chmod without following", lambda: native(libc.fchmodat(-100, secret.encode(), 0o644, 0)))
attempt("newer chmod", lambda: native(libc.syscall(452, -100, secret.encode(), 0o644, 0)))
attempt("chown", lambda: os.chown(secret, os.getuid(), os.getgid()))
attempt("lchown", lambda: os.lchown(secret, os.getuid(), os.getgid()))
attempt("chown by a descriptor", lambda: os.fchown(os.open(model, os.O_RDONLY), os.getuid(), os.getgid()))
attempt("access list", lambda: os.setxattr(secret, "user.x", b"x"))
attempt("memory of the worker", lambda: open(f"/proc/{os.getppid()}/mem", "r+b").close())
attempt("late import", lambda: __import__("xml.etree.ElementTree"))
def in_thread():
    thread = threading.Thread(target=lambda: attempt("internet in a thread", lambda: socket.socket(socket.AF_INET)))
    thread.start()
    thread.join()
attempt("thread", in_thread)
found["core limit"] = resource.getrlimit(resource.RLIMIT_CORE)
found["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
print(json.dumps(found), flush=True)
os.abort()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="system calls are filtered on Linux")
def test_confined_process_reaches_nothing_and_still_works(tmp_path: Path) -> None:
    model, secret, packages = tmp_path / "model.gguf", tmp_path / "mesh_ca.nk", Path(sys.prefix)
    model.write_text("GGUF")
    secret.write_text("SA")
    program = [sys.executable, "-c", TRIES, str(model), str(secret), str(packages)]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout)
    files = found.pop("files")
    assert files[0] == files[1] <= confinement.MAX_OPEN_FILES
    assert found.pop("core limit") == [0, 0]
    assert found == {
        "internet": "EACCES",
        "local socket": "EACCES",
        "exec": "EPERM",
        "fork": "EPERM",
        "program": "EPERM",
        "kill the worker": "EPERM",
        "ptrace": "EPERM",
        "unshare": "EPERM",
        "file": "done",
        "model": "done",
        "key beside the model": "EACCES",
        "list of keys": "EACCES",
        "key in the checkout": "EACCES",
        "write the model": "EACCES",
        "new package": "EACCES",
        "remove the model": "EACCES",
        "chmod": "EPERM",
        "chmod by a descriptor": "EPERM",
        "chmod without following": "EPERM",
        "newer chmod": "EPERM",
        "chown": "EPERM",
        "lchown": "EPERM",
        "chown by a descriptor": "EPERM",
        "access list": "EPERM",
        "memory of the worker": "EACCES",
        "late import": "done",
        "thread": "done",
        "internet in a thread": "EACCES",
    }
    assert ended.returncode == -6, "abort() ends it as it always did"
