"""Confines a process to the files that it may read, for good (Linux's Landlock). It can write nothing but GPU devices.

Landlock also keeps the process out of the memory of all processes that it did not start. It applies to one thread and to those that this
thread starts later, so call ``restrict`` before there is a second one.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

#: The same numbers on all processors.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

#: linux/landlock.h
_WRITE_FILE, _READ_FILE, _READ_DIR, _IOCTL_DEVICE = 1 << 1, 1 << 2, 1 << 3, 1 << 15
_READ = _READ_FILE | _READ_DIR
#: All rights of version 1 are bits 0 to 12: starting, reading, writing, and each way to make or remove an entry. Later versions added moves
#: (2), truncation (3) and device control (5).
_ADDED = {2: 1 << 13, 3: 1 << 14, 5: _IOCTL_DEVICE}
_ALL_OF_VERSION_1 = (1 << 13) - 1

#: What libraries and GPU drivers read. /etc, /opt and home directories are left out, because keys are there.
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/sys"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nvidia", "/etc/vulkan", "/etc/OpenCL", "/etc/alternatives"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/devices", "/proc/driver", "/proc/sys/vm"),
)
_OPTIONAL_FOLDERS = ("rocm*", "cuda*", "intel", "amdgpu*")
#: In /dev.
_DEVICES = ("null", "zero", "full", "random", "urandom")
_GPU_DEVICES = ("nvidia*", "dri", "kfd")


def restrict(files: Iterable[Path]) -> str:
    """Let this process read only ``files``, its own program and the system's libraries. Return why this system doesn't support it; empty if
    it does."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no Landlock"
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        return f"Landlock would miss {threads - 1} threads that run already"
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    if version < 1:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    handled = _ALL_OF_VERSION_1 | sum(bit for first, bit in _ADDED.items() if version >= first)
    attributes = struct.pack("=Q", handled)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    try:
        for path in (*files, *_own_program(), *map(Path, _SYSTEM)):
            _allow(libc, ruleset, path, _READ & handled)
        for device in _devices():
            _allow(libc, ruleset, device, (_READ | _WRITE_FILE | _IOCTL_DEVICE) & handled)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, ruleset, 0):
            return f"Landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    return ""


def _own_program() -> Iterator[Path]:
    """Yield the folders of the code. Not the checkout itself, where a stack keeps its keys."""
    yield from {Path(sys.prefix), Path(sys.base_prefix)}
    root = Path(__file__).parents[1]
    yield from (root / "services", root / "shared", root / "features")
    yield from (Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder)
    for pattern in _OPTIONAL_FOLDERS:
        yield from Path("/opt").glob(pattern)


def _devices() -> Iterator[Path]:
    for pattern in (*_DEVICES, *_GPU_DEVICES):
        yield from Path("/dev").glob(pattern)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    """Add a rule; skip what isn't there."""
    with suppress(OSError):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            # A file has no entries.
            rule = struct.pack("=Qi", rights if path.is_dir() else rights & ~_READ_DIR, opened)
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        finally:
            os.close(opened)
