"""Ends a child process with its parent, and confines one before it opens a model file, which is untrusted (SECURITY.md, T24).

An attacker who takes over llama.cpp through a model file finds no network, can't start programs, can't look into other processes, reads no
file but the model and the libraries, writes none, and opens none to others. On Linux, Landlock (`shared.landlock`) denies reads and writes
of files, and a seccomp filter the rest; neither can be removed. The filter denies a list of system calls and allows the others, because the
calls of a GPU driver change with its version.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from shared import processes

#: For all parts of a model, which llama.cpp opens together, and dozens per GPU.
MAX_OPEN_FILES = 1024

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER = 1
#: TSYNC for all existing threads, and SPEC_ALLOW: older kernels otherwise slow down filtered processes to guard against code that
#: reads its own process's memory, which doesn't matter here.
_SECCOMP_FLAGS = 1 | 4

#: seccomp(2): verdicts. The low 16 bits have the errno.
ALLOW = 0x7FFF0000
KILL = 0x80000000
_FAIL = 0x00050000

#: linux/filter.h: load a word of the call, compare it, return a verdict.
_LOAD, _IF_EQUAL, _IF_AT_MIN, _IF_ANY_BIT, _VERDICT = 0x20, 0x15, 0x35, 0x45, 0x06
_INSTRUCTION = struct.Struct("<HBBI")
#: linux/seccomp.h: offsets of the call's number, its machine and its arguments, which have 8 bytes; the low 4 are compared.
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16

_CLONE_THREAD = 0x00010000
#: asm-generic/ioctls.h: TIOCSTI and TIOCLINUX can type into the worker's terminal.
_TERMINAL_INPUT = (0x5412, 0x541C)


@dataclass(frozen=True, slots=True)
class CpuArchitecture:
    """Linux's system call numbers on a kind of processor."""

    #: AUDIT_ARCH of linux/audit.h.
    audit: int
    seccomp: int
    numbers: dict[str, int]
    denied: tuple[int, ...]


#: Numbers from 424 on are the same everywhere: pidfd signals, io_uring (which could do most of what is denied here), mounts, the files and
#: memory of other processes, and rights of files (fchmodat2, setxattrat, removexattrat, file_setattr).
_DENIED_EVERYWHERE = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 452, 463, 466, 469)

#: In the same order for both: starting programs (execve, execveat); signals to others (tkill, rt_sigqueueinfo, rt_tgsigqueueinfo);
#: other processes' memory (ptrace, process_vm_readv, process_vm_writev, kcmp); code and events in the kernel (bpf, perf_event_open,
#: userfaultfd, init_module, finit_module, delete_module, kexec_load); keys (add_key, request_key, keyctl); other views of the
#: system (unshare, setns, mount, umount2, pivot_root, chroot, open_by_handle_at); rights of files, which Landlock doesn't restrict (fchmod,
#: fchmodat, fchown, fchownat, and access lists: setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr).
MACHINES = {
    "x86_64": CpuArchitecture(
        audit=0xC000003E,
        seccomp=317,
        numbers={"socket": 41, "socketpair": 53, "kill": 62, "tgkill": 234, "clone": 56, "clone3": 435, "ioctl": 16},
        # The first two are fork and vfork, and the last three chmod, chown and lchown, which aarch64 doesn't have.
        denied=(
            *(57, 58, 59, 322, 200, 129, 297, 101, 310, 311, 312, 321, 298, 323, 175, 313, 176, 246, 248, 249, 250),
            *(272, 308, 165, 166, 155, 161, 304, *_DENIED_EVERYWHERE),
            *(91, 268, 93, 260, 188, 189, 190, 197, 198, 199, 90, 92, 94),
        ),
    ),
    "aarch64": CpuArchitecture(
        audit=0xC00000B7,
        seccomp=277,
        numbers={"socket": 198, "socketpair": 199, "kill": 129, "tgkill": 131, "clone": 220, "clone3": 435, "ioctl": 29},
        denied=(
            *(221, 281, 130, 138, 240, 117, 270, 271, 272, 280, 241, 282, 105, 273, 106, 104, 217, 218, 219),
            *(97, 268, 40, 39, 41, 51, 265, *_DENIED_EVERYWHERE),
            *(52, 53, 55, 54, 5, 6, 7, 14, 15, 16),
        ),
    ),
}
#: The x32 calls of x86_64 have other numbers.
_X32_NUMBERS = 0x40000000


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, and seal its memory from other processes of the same user (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    processes.seal()
    # The parent may have died before prctl took effect. _exit, because buffers shared with a fork must not be flushed.
    if os.getppid() != parent:
        os._exit(0)


def confine(*, local_sockets: bool) -> str:
    """Drop what an engine doesn't need, for good. Return why this system doesn't support it; empty if it does.

    ``local_sockets`` allows Unix sockets, through which GPU drivers talk to their services; else no socket can be opened."""
    _limit()
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no supported filter for system calls"
    machine = MACHINES.get(platform.machine())
    if machine is None or sys.byteorder != "little":
        return f"the system calls of {platform.machine()} are not known"
    return _install(filter_program(machine, own_pid=os.getpid(), local_sockets=local_sockets), machine)


def filter_program(machine: CpuArchitecture, *, own_pid: int, local_sockets: bool) -> bytes:
    """Build the BPF program of the filter."""
    steps = [
        _step(_LOAD, _MACHINE_AT),
        _step(_IF_EQUAL, machine.audit, then=1),
        _step(_VERDICT, KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    if machine is MACHINES["x86_64"]:
        steps += [_step(_IF_AT_MIN, _X32_NUMBERS, otherwise=1), _fail(errno.EPERM)]
    for number in machine.denied:
        steps += [_step(_IF_EQUAL, number, otherwise=1), _fail(errno.EPERM)]
    for name, rule in _rules(own_pid, local_sockets=local_sockets):
        steps += [_step(_IF_EQUAL, machine.numbers[name], otherwise=len(rule)), *rule]
    return b"".join((*steps, _step(_VERDICT, ALLOW)))


def _rules(own_pid: int, *, local_sockets: bool) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the rules for calls that depend on their arguments. Each ends with a verdict."""
    for name in ("socket", "socketpair"):
        yield name, _only_if(_IF_EQUAL, socket.AF_UNIX, otherwise=errno.EACCES) if local_sockets else [_fail(errno.EACCES)]
    # llama.cpp calls abort(), which is a signal to its own process.
    for name in ("kill", "tgkill"):
        yield name, _only_if(_IF_EQUAL, own_pid, otherwise=errno.EPERM)
    # Allow threads but no processes, which could outlive this one. A filter can't see clone3's arguments; without it, libraries
    # use clone.
    yield "clone", _only_if(_IF_ANY_BIT, _CLONE_THREAD, otherwise=errno.EPERM)
    yield "clone3", [_fail(errno.ENOSYS)]
    typing = [step for command in _TERMINAL_INPUT for step in (_step(_IF_EQUAL, command, otherwise=1), _fail(errno.EPERM))]
    yield "ioctl", [_load_argument(1), *typing, _step(_VERDICT, ALLOW)]


def _only_if(test: int, value: int, *, otherwise: int) -> list[bytes]:
    return [_load_argument(0), _step(test, value, otherwise=1), _step(_VERDICT, ALLOW), _fail(otherwise)]


def _load_argument(index: int) -> bytes:
    return _step(_LOAD, _ARGUMENTS_AT + 8 * index)


def _fail(number: int) -> bytes:
    return _step(_VERDICT, _FAIL | number)


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """Encode an instruction; after a test, ``then`` or ``otherwise`` instructions are skipped."""
    return _INSTRUCTION.pack(code, then, otherwise, value)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(limit for limit in (MAX_OPEN_FILES, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Program(ctypes.Structure):
    """`struct sock_fprog` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _install(steps: bytes, machine: CpuArchitecture) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return f"PR_SET_NO_NEW_PRIVS: {os.strerror(ctypes.get_errno())}"
    program = _Program(len(steps) // _INSTRUCTION.size, steps)
    status = libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FLAGS, ctypes.byref(program))
    if status > 0:
        return f"seccomp: thread {status} cannot be filtered"
    return f"seccomp: {os.strerror(ctypes.get_errno())}" if status else ""
