"""Files of replicas on a volume that they share.

The folder ``{node}`` in a path stands for the replica's node id. A replica locks its file for as long as it runs. If the lock is free, the
owner is gone, and another replica adopts the file. It also adopts the file at the same path without that folder, which a version before
this one wrote.
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from shared.stores import file_lock
from shared.types import NodeId

FOLDER = "{node}"
#: Between two searches. The leases of a gateway's requests last longer.
ADOPT_SECONDS = 60.0
#: An nkey.
_NODE = re.compile(r"U[A-Z2-7]{55}")


def is_shared(template: Path) -> bool:
    return template.parent.name == FOLDER


def mistakes(variable: str, template: Path | None) -> Iterator[str]:
    if template is not None and FOLDER in str(template) and (not is_shared(template) or FOLDER in str(template.parent.parent)):
        yield f"{variable}: use {FOLDER} only as the folder of the file, such as /var/lib/aimesh/{FOLDER}/{template.name}"


def path_of(template: Path, node: NodeId) -> Path:
    return template.parent.parent / node / template.name if is_shared(template) else template


def without_folder(template: Path) -> Path:
    return template.parent.parent / template.name if is_shared(template) else template


@asynccontextmanager
async def held(template: Path, node: NodeId) -> AsyncIterator[Path]:
    """Lock this replica's file for the block; create its folder. Remove the folder if the file is empty at the end. Raises BadSettings."""
    path = path_of(template, node)
    async with file_lock.hold(path, make_folder=is_shared(template)):
        yield path
        if is_shared(template) and not (path.exists() and path.stat().st_size):
            remove(path)


def find_others(template: Path, node: NodeId) -> list[Path]:
    """Return the files of other replicas, running or not. Blocks."""
    if not is_shared(template):
        return []
    base = template.parent.parent
    with suppress(OSError):
        found = [folder / template.name for folder in base.iterdir() if _NODE.fullmatch(folder.name) and folder.name != node]
        old = without_folder(template)
        return [*found, old] if old.exists() else found
    return []


def key_of(path: Path) -> Path:
    """Return where the owner's node key is, if those who adopt the file need it."""
    return path.with_suffix(".nk")


def remove(path: Path) -> None:
    """Delete a file whose lock this process holds, with its key and lock, and its folder if that is then empty. Blocks."""
    for each in (path, key_of(path), file_lock.lock_file(path)):
        with suppress(OSError):
            each.unlink(missing_ok=True)
    if _NODE.fullmatch(path.parent.name):
        with suppress(OSError):
            path.parent.rmdir()
