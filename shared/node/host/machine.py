"""What this machine says of itself, on Linux and macOS, by psutil; inside a container or unit with limits, what it has of it."""

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

#: What is raised where a figure is not to be had: no /proc/diskstats in many containers, a folder that is gone, a file in another form.
UNREADABLE = (OSError, RuntimeError, ValueError, psutil.Error)

_LOOPBACK = re.compile(r"lo\d*")
#: A new value at every boot.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: What Docker, Podman and Kubernetes leave in a container.
_CONTAINER_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"), Path("/var/run/secrets/kubernetes.io"))


class MachineReadings(Protocol):
    """Each method of a figure asks the system now, takes microseconds, and raises one of UNREADABLE where it does not tell."""

    def name(self) -> str:
        """The same for all nodes that share these figures, and for no others. Raises nothing."""
        ...

    def disk_name(self, folder: Path) -> str:
        """Where the file system that has the folder is mounted. Raises nothing."""
        ...

    def processors(self) -> Processors: ...

    def memory(self) -> Space: ...

    def disk(self, folder: Path) -> Space:
        """Of the file system that has the folder; one that is not there yet will be on that of the folder above."""
        ...

    def disk_bytes(self) -> Mapping[str, TransferredBytes]:
        """Read and written, of all disks."""
        ...

    def network_bytes(self) -> Mapping[str, TransferredBytes]:
        """Received and sent, by interface, without loopback."""
        ...


class ThisMachine(MachineReadings):
    def __init__(self, groups: tuple[Path, ...] | None = None) -> None:
        """``groups`` are the folders of the cgroups that limit us; those of this process, if nobody says otherwise."""
        self._groups = cgroup_limits.groups() if groups is None else groups
        self._processors = psutil.cpu_count() or 1

    def name(self) -> str:
        host = socket.gethostname()
        try:
            # Containers of one machine have the same; two machines called localhost do not.
            boot = hashlib.sha256(_BOOT_ID.read_bytes()).hexdigest()[:6]
        except OSError:
            return host
        try:
            is_limited = cgroup_limits.processors(self._groups, self._processors, time.monotonic()) is not None
        except UNREADABLE:
            is_limited = False
        # A container's own host name says nothing about the machine whose figures it shows; with limits, the figures are its own.
        return f"machine-{boot}" if not is_limited and any(sign.exists() for sign in _CONTAINER_SIGNS) else f"{host}-{boot}"

    def disk_name(self, folder: Path) -> str:
        return str(next(each for each in (_existing(folder), *_existing(folder).parents) if each.is_mount() or each == each.parent))

    def processors(self) -> Processors:
        limited = cgroup_limits.processors(self._groups, self._processors, time.monotonic())
        if limited is not None:
            return limited
        times = psutil.cpu_times()._asdict()
        # Linux counts what its guests used in user and nice already.
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
        # psutil's own care for totals that go back never forgets a name: Growth does it instead.
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
    """The folder, or the nearest above it that is there."""
    resolved = folder.absolute()
    return next((each for each in (resolved, *resolved.parents) if each.exists()), resolved)
