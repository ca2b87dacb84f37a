"""Reads the figures of this machine on Linux and macOS with psutil; within cgroup v2 limits (containers, systemd), those of the limits."""

import hashlib
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

#: 800 Gbit/s. A larger step is a misreading.
MAX_BYTES_PER_SECOND = 100_000_000_000
#: An exbibyte. A larger total is a driver's -1 or an overflow.
MAX_BYTES = 2**60
#: Interfaces to remember. Each container that starts may add one with its own name.
MAX_SOURCES = 1000


@dataclass(frozen=True, slots=True)
class Processors:
    """Processor time so far, in seconds."""

    #: What was measured. Only readings of the same can be compared.
    of: str
    busy: float
    possible: float


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of memory or of a disk."""

    used: int
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class TransferredBytes:
    """Bytes since the system started: read and written, or received and sent."""

    inwards: int
    outwards: int


def cpu_share(before: Processors, now: Processors) -> float | None:
    """Return the share that was used between two readings, from 0 to 1; None if they cannot be compared."""
    possible = now.possible - before.possible
    if before.of != now.of or possible <= 0:
        return None
    # The kernel's idle time may go back slightly, and a cgroup's usage and the clock are read at different instants.
    return min(1.0, max(0.0, (now.busy - before.busy) / possible))


class CounterRate:
    """Computes the growth of totals that may vanish with their interface, restart, or be nonsense once.

    The first growth is everything since the system started, so that a restarted node continues its counters. Never negative: a total that
    went back adds nothing until it grows again.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._began = False

    def take(self, totals: Mapping[str, int], seconds: float) -> int:
        """``seconds`` is the time since the last call."""
        bound = MAX_BYTES if not self._began else MAX_BYTES_PER_SECOND * max(1.0, seconds)
        grown = 0
        for source, total in totals.items():
            if not 0 <= total < MAX_BYTES:
                continue
            step = total - self._last.pop(source, 0)
            self._last[source] = total
            if 0 < step < bound:
                grown += step
        while len(self._last) > MAX_SOURCES:
            self._last.pop(next(iter(self._last)))
        self._began = self._began or bool(totals)
        return grown


OWN_GROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
#: The controller of cgroup v1, or none for v2 -> the files with a group's limit and use, and the part of it that is freed on demand.
_MEMORY_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def find_cgroups(own_group: Path = OWN_GROUP, mount: Path = MOUNT, controller: str = "") -> tuple[Path, ...]:
    """Return the folders of our cgroup and its parents, whose limits also apply: in cgroup v2, or those of a controller of v1. Empty if
    there are none."""
    try:
        groups = [line.split(":", 2) for line in own_group.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ()
    path = next((group[2] for group in groups if len(group) == 3 and controller in group[1].split(",")), None)
    if path is None:
        return ()
    mount /= controller
    own = mount / path.lstrip("/")
    if ".." in own.parts or not own.is_dir():
        # A container that is given its path on the host, but only its own part of the tree.
        own = mount
    return tuple(folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def free_memory(own_group: Path = OWN_GROUP, mount: Path = MOUNT) -> int:
    """Return the bytes that this process can still use: what is left of the machine's memory and under each limit."""
    left = [psutil.virtual_memory().available]
    for controller, (limit, used, reclaimable) in _MEMORY_FILES.items():
        for folder in find_cgroups(own_group, mount, controller):
            # The root has no limit file, and a group without a limit says "max".
            with suppress(OSError, ValueError):
                allowed, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
                left.append(allowed - taken + _field(folder / "memory.stat", reclaimable))
    return max(0, min(left))


def cgroup_memory(folders: Iterable[Path], machine_bytes: int) -> Space | None:
    """Return the use of the tightest memory.max; None if no limit is below the machine's memory.

    Like the machine's figure, this excludes page cache that the kernel can free at once.
    """
    found = _tightest(folders, _memory_limit)
    if found is None or found.allowed >= machine_bytes:
        return None
    total = int(found.allowed)
    current = int((found.folder / "memory.current").read_text(encoding="utf-8"))
    used = min(total, max(0, current - _field(found.folder / "memory.stat", "inactive_file")))
    return Space(used=used, free=total - used, total=total)


def cgroup_processors(folders: Iterable[Path], machine_processors: int, now: float) -> Processors | None:
    """Return the use of the tightest cpu.max; None if no limit is below the machine's processors. ``now`` is monotonic."""
    found = _tightest(folders, _cpu_limit)
    if found is None or found.allowed >= machine_processors:
        return None
    used = _field(found.folder / "cpu.stat", "usage_usec") / 1e6
    return Processors(of=f"{found.folder} {found.allowed}", busy=used, possible=now * found.allowed)


def processor_limit(folders: Iterable[Path]) -> float | None:
    """Return the tightest cpu.max in processors; None without a limit."""
    found = _tightest(folders, _cpu_limit)
    return None if found is None else found.allowed


@dataclass(frozen=True, slots=True)
class _Limit:
    allowed: float
    folder: Path


def _tightest(folders: Iterable[Path], limit: Callable[[Path], float | None]) -> _Limit | None:
    def find_limits() -> Iterator[_Limit]:
        for folder in folders:
            try:
                allowed = limit(folder)
            except FileNotFoundError:
                continue  # the root has no limit file, and a controller may be disabled
            if allowed is not None:
                yield _Limit(allowed, folder)

    return min(find_limits(), key=lambda found: found.allowed, default=None)


def _memory_limit(folder: Path) -> float | None:
    word = (folder / "memory.max").read_text(encoding="ascii").strip()
    return None if word == "max" else float(word)


def _cpu_limit(folder: Path) -> float | None:
    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return None if quota == "max" else float(quota) / float(period)


def _field(file: Path, name: str) -> int:
    for line in file.read_text(encoding="ascii").splitlines():
        key, _, number = line.partition(" ")
        if key == name:
            return int(number)
    raise ValueError(f"{file} has no {name}")


#: Raised if a figure is unavailable, such as /proc/diskstats in many containers.
UNREADABLE = (OSError, RuntimeError, ValueError, psutil.Error)

_LOOPBACK = re.compile(r"lo\d*")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CONTAINER_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"), Path("/var/run/secrets/kubernetes.io"))


class ThisMachine:
    """Its figures take microseconds to read, and raise one of UNREADABLE if unavailable."""

    def __init__(self, groups: tuple[Path, ...] | None = None) -> None:
        """``groups`` are the cgroup folders that limit us; by default those of this process."""
        self._groups = find_cgroups() if groups is None else groups
        self._processors = psutil.cpu_count() or 1

    def name(self) -> str:
        """Return a name shared by exactly those nodes that share these figures. Raises nothing."""
        host = socket.gethostname()
        try:
            # Containers on one machine share it; two machines called localhost do not.
            boot = hashlib.sha256(_BOOT_ID.read_bytes()).hexdigest()[:6]
        except OSError:
            return host
        try:
            is_limited = cgroup_processors(self._groups, self._processors, time.monotonic()) is not None
        except UNREADABLE:
            is_limited = False
        # A container's host name does not identify the machine whose figures it reports. With limits, the figures are its own.
        return f"machine-{boot}" if not is_limited and any(sign.exists() for sign in _CONTAINER_SIGNS) else f"{host}-{boot}"

    def disk_name(self, folder: Path) -> str:
        """Return the mount point of the folder's file system. Raises nothing."""
        existing = _nearest_existing(folder)
        return str(next(each for each in (existing, *existing.parents) if each.is_mount() or each == each.parent))

    def processors(self) -> Processors:
        limited = cgroup_processors(self._groups, self._processors, time.monotonic())
        if limited is not None:
            return limited
        times = psutil.cpu_times()._asdict()
        # Linux includes guests in user and nice.
        possible = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        return Processors("machine", busy=possible - times["idle"] - times.get("iowait", 0.0), possible=possible)

    def memory(self) -> Space:
        found = psutil.virtual_memory()
        limited = cgroup_memory(self._groups, found.total)
        return limited or Space(used=found.total - found.available, free=found.available, total=found.total)

    def disk(self, folder: Path) -> Space:
        """Return the space of the folder's file system. If the folder does not exist yet, its parent's counts."""
        found = psutil.disk_usage(str(_nearest_existing(folder)))
        return Space(used=found.used, free=found.free, total=found.total)

    def disk_bytes(self) -> Mapping[str, TransferredBytes]:
        # psutil's own handling of decreasing totals never forgets a name. CounterRate does it instead.
        found = psutil.disk_io_counters(nowrap=False)
        if found is None:
            raise OSError("no disks are listed")
        return {"all": TransferredBytes(inwards=found.read_bytes, outwards=found.write_bytes)}

    def network_bytes(self) -> Mapping[str, TransferredBytes]:
        """Return the bytes received and sent per interface, without loopback."""
        found = psutil.net_io_counters(pernic=True, nowrap=False)
        return {
            name: TransferredBytes(inwards=counted.bytes_recv, outwards=counted.bytes_sent)
            for name, counted in found.items()
            if not _LOOPBACK.fullmatch(name)
        }


def _nearest_existing(folder: Path) -> Path:
    resolved = folder.absolute()
    return next((each for each in (resolved, *resolved.parents) if each.exists()), resolved)
