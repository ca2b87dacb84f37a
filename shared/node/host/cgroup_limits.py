"""Reads the memory and processor limits of a container or systemd unit: memory.max and cpu.max of cgroup v2, at any level.

With cgroup v1 and on other systems no limits are found, and the machine's own figures are reported.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.node.host.readings import Processors, Space

OWN_GROUP = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


def groups(own_group: Path = OWN_GROUP, mount: Path = MOUNT) -> tuple[Path, ...]:
    """Return the folders of our cgroup and its parents, whose limits also apply; empty without cgroup v2."""
    try:
        lines = own_group.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        return ()
    own = mount / path.lstrip("/")
    if ".." in own.parts or not own.is_dir():
        # A container that is given its path on the host, but only its own part of the tree.
        own = mount
    return tuple(folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def memory(folders: Iterable[Path], machine_bytes: int) -> Space | None:
    """Return the use of the tightest limit; None if no limit is below the machine's memory.

    Like the machine's figure, this excludes page cache that the kernel can free at once.
    """
    found = _tightest(folders, _memory_limit)
    if found is None or found.allowed >= machine_bytes:
        return None
    total = int(found.allowed)
    current = int((found.folder / "memory.current").read_text(encoding="utf-8"))
    used = min(total, max(0, current - _field(found.folder / "memory.stat", "inactive_file")))
    return Space(used=used, free=total - used, total=total)


def processors(folders: Iterable[Path], machine_processors: int, now: float) -> Processors | None:
    """Return the use of the tightest limit; None if no limit is below the machine's processors. ``now`` is monotonic."""
    found = _tightest(folders, _cpu_limit)
    if found is None or found.allowed >= machine_processors:
        return None
    used = _field(found.folder / "cpu.stat", "usage_usec") / 1e6
    return Processors(of=f"{found.folder} {found.allowed}", busy=used, possible=now * found.allowed)


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
    """Read one value from a file of `name number` lines. Raises ValueError if it is missing."""
    for line in file.read_text(encoding="ascii").splitlines():
        key, _, number = line.partition(" ")
        if key == name:
            return int(number)
    raise ValueError(f"{file} has no {name}")
