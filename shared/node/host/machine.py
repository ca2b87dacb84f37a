"""What this machine says of itself, on Linux and macOS, by psutil; inside a container or unit with limits, what it has of it."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import psutil

from shared.node.host import limits
from shared.node.host.readings import Moved, Processors, Space

#: What is raised where a figure is not to be had: no /proc/diskstats in many containers, a folder that is gone, a file in another form.
UNREADABLE = (OSError, RuntimeError, ValueError, psutil.Error)

_LOOPBACK = re.compile(r"lo\d*")


class Machine(Protocol):
    """Each method asks the system now, takes microseconds, and raises one of UNREADABLE where it does not tell."""

    def processors(self) -> Processors: ...

    def memory(self) -> Space: ...

    def disk(self, folder: Path) -> Space:
        """Of the file system that has the folder; one that is not there yet will be on that of the folder above."""
        ...

    def disk_bytes(self) -> Mapping[str, Moved]:
        """Read and written, of all disks."""
        ...

    def network_bytes(self) -> Mapping[str, Moved]:
        """Received and sent, by interface, without loopback."""
        ...


class ThisMachine(Machine):
    def __init__(self, groups: tuple[Path, ...] | None = None) -> None:
        """``groups`` are the folders of the cgroups that limit us; those of this process, if nobody says otherwise."""
        self._groups = limits.groups() if groups is None else groups
        self._processors = psutil.cpu_count() or 1

    def processors(self) -> Processors:
        limited = limits.processors(self._groups, self._processors, time.monotonic())
        if limited is not None:
            return limited
        times = psutil.cpu_times()._asdict()
        # Linux counts what its guests used in user and nice already.
        possible = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        return Processors("machine", busy=possible - times["idle"] - times.get("iowait", 0.0), possible=possible)

    def memory(self) -> Space:
        found = psutil.virtual_memory()
        limited = limits.memory(self._groups, found.total)
        return limited or Space(used=found.total - found.available, free=found.available, total=found.total)

    def disk(self, folder: Path) -> Space:
        there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
        found = psutil.disk_usage(str(there))
        return Space(used=found.used, free=found.free, total=found.total)

    def disk_bytes(self) -> Mapping[str, Moved]:
        # psutil's own care for totals that go back never forgets a name: Growth does it instead.
        found = psutil.disk_io_counters(nowrap=False)
        if found is None:
            raise OSError("no disks are listed")
        return {"all": Moved(inwards=found.read_bytes, outwards=found.write_bytes)}

    def network_bytes(self) -> Mapping[str, Moved]:
        found = psutil.net_io_counters(pernic=True, nowrap=False)
        return {
            name: Moved(inwards=counted.bytes_recv, outwards=counted.bytes_sent)
            for name, counted in found.items()
            if not _LOOPBACK.fullmatch(name)
        }
