"""Tells whether files have changed since they were checked."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec


class Stamp(msgspec.Struct, frozen=True, rename="camel"):
    """Identifies the content of one file."""

    path: str
    size: int
    modified_ns: int
    #: The inode's time, which, unlike the one above, can't be set back. A file that is moved away and back gets a new one, too.
    changed_ns: int
    inode: int


Stamps = tuple[Stamp, ...]


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return an empty tuple if a file is missing."""
    try:
        found = [(path, path.stat()) for path in files]
    except OSError:
        return ()
    return tuple(
        # JSON can't hold bytes that are not UTF-8.
        Stamp(os.fsencode(path).decode("utf-8", "backslashreplace"), one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino)
        for path, one in found
    )


def find_changed(stamps: Stamps, files: Iterable[Path]) -> str:
    """Return the path of a file that is not as it was stamped; empty if there is none."""
    known = {stamp.path: stamp for stamp in stamps}
    for file in files:
        now = stamps_of([file])
        if not now or known.get(now[0].path, now[0]) != now[0]:
            return str(file)
    return ""
