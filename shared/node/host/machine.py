"""Reads the figures of this machine on Linux and macOS with psutil; with cgroup limits, those of the limits."""

import hashlib
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import psutil

from shared.node.host import cgroup_limits
from shared.node.host.readings import Processors, Space, TransferredBytes

#: Raised if a figure is unavailable, such as /proc/diskstats in many containers.
UNREADABLE = (OSError, RuntimeError, ValueError, psutil.Error)

_LOOPBACK = re.compile(r"lo\d*")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CONTAINER_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"), Path("/var/run/secrets/kubernetes.io"))


class MachineReadings(Protocol):
    """Figures take microseconds to read, and raise one of UNREADABLE if unavailable."""

    def name(self) -> str:
        """Return a name shared by exactly those nodes that share these figures. Raises nothing."""
        ...

    def disk_name(self, folder: Path) -> str:
        """Return the mount point of the folder's file system. Raises nothing."""
        ...

    def processors(self) -> Processors: ...

    def memory(self) -> Space: ...

    def disk(self, folder: Path) -> Space:
        """Return the space of the folder's file system. If the folder does not exist yet, its parent's counts."""
        ...

    def disk_bytes(self) -> Mapping[str, TransferredBytes]:
        """Return the bytes read from and written to all disks."""
        ...

    def network_bytes(self) -> Mapping[str, TransferredBytes]:
        """Return the bytes received and sent per interface, without loopback."""
        ...


class ThisMachine(MachineReadings):
    def __init__(self, groups: tuple[Path, ...] | None = None) -> None:
        """``groups`` are the cgroup folders that limit us; by default those of this process."""
        self._groups = cgroup_limits.groups() if groups is None else groups
        self._processors = psutil.cpu_count() or 1

    def name(self) -> str:
        host = socket.gethostname()
        try:
            # Containers on one machine share it; two machines called localhost do not.
            boot = hashlib.sha256(_BOOT_ID.read_bytes()).hexdigest()[:6]
        except OSError:
            return host
        try:
            is_limited = cgroup_limits.processors(self._groups, self._processors, time.monotonic()) is not None
        except UNREADABLE:
            is_limited = False
        # A container's host name does not identify the machine whose figures it reports. With limits, the figures are its own.
        return f"machine-{boot}" if not is_limited and any(sign.exists() for sign in _CONTAINER_SIGNS) else f"{host}-{boot}"

    def disk_name(self, folder: Path) -> str:
        return str(next(each for each in (_existing(folder), *_existing(folder).parents) if each.is_mount() or each == each.parent))

    def processors(self) -> Processors:
        limited = cgroup_limits.processors(self._groups, self._processors, time.monotonic())
        if limited is not None:
            return limited
        times = psutil.cpu_times()._asdict()
        # Linux includes guests in user and nice.
        possible = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        return Processors("machine", busy=possible - times["idle"] - times.get("iowait", 0.0), possible=possible)

    def memory(self) -> Space:
        found = psutil.virtual_memory()
        limited = cgroup_limits.memory(self._groups, found.total)
        return limited or Space(used=found.total - found.available, free=found.available, total=found.total)

    def disk(self, folder: Path) -> Space:
        found = psutil.disk_usage(str(_existing(folder)))
        return Space(used=found.used, free=found.free, total=found.total)

    def disk_bytes(self) -> Mapping[str, TransferredBytes]:
        # psutil's own handling of decreasing totals never forgets a name. CounterRate does it instead.
        found = psutil.disk_io_counters(nowrap=False)
        if found is None:
            raise OSError("no disks are listed")
        return {"all": TransferredBytes(inwards=found.read_bytes, outwards=found.write_bytes)}

    def network_bytes(self) -> Mapping[str, TransferredBytes]:
        found = psutil.net_io_counters(pernic=True, nowrap=False)
        return {
            name: TransferredBytes(inwards=counted.bytes_recv, outwards=counted.bytes_sent)
            for name, counted in found.items()
            if not _LOOPBACK.fullmatch(name)
        }


def _existing(folder: Path) -> Path:
    """Return the folder or its nearest existing parent."""
    resolved = folder.absolute()
    return next((each for each in (resolved, *resolved.parents) if each.exists()), resolved)
