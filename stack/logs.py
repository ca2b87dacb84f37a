"""The log files of a stack: limit their size and age, read their end, and follow them across rotations.

A file that is too long is copied and truncated. Its writers append, so they need not know. Lines written between the two steps can be lost.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from shared.identity import private_file

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
#: 2026-11-21 or 2026/11/21, and Valkey's 21 Nov 2026. Days are exact enough: the programs write in different time zones.
_DAY = re.compile(rb"\b(\d{4})([-/])(\d\d)\2(\d\d)|\b(\d\d) (" + b"|".join(_MONTHS) + rb") (\d{4})\b")
#: Only a date within these first characters is the line's own; later ones are part of its text.
_START_BYTES = 80


def day_of(line: bytes) -> date | None:
    """Return the day of a line; None if it shows none."""
    found = _DAY.search(line, 0, _START_BYTES)
    if found is None:
        return None
    year, _, month, day, day_first, name, year_last = found.groups()
    try:
        if name is not None:
            return date(int(year_last), _MONTHS.index(name) + 1, int(day_first))
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def old_bytes(lines: Iterable[bytes], oldest: date) -> int | None:
    """Return the length of the beginning that was written before ``oldest``; None if no line shows a day.

    A line without a day, such as one of a traceback, belongs to the line before it. Stops reading at the first line to keep.
    """
    position = 0
    old: int | None = None
    for line in lines:
        day = day_of(line)
        if day is not None and day >= oldest:
            return old or 0
        position += len(line)
        if day is not None or old is not None:
            old = position
    return old


def of_day(lines: Iterable[bytes], wanted: date) -> bytes:
    """Return the lines of one day. A line without a day belongs to the line before it."""
    day, found = None, []
    for line in lines:
        day = day_of(line) or day
        if day == wanted:
            found.append(line)
    return b"".join(found)


#: With its predecessor, a program has at most twice this.
MAX_BYTES = 10 * 1024 * 1024
_TAIL_BYTES = 256 * 1024
_FOLLOW_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class LogFileLine:
    program: str
    text: str


def rotate(path: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Rotate the file if it is too long. Return whether it was."""
    try:
        if path.stat().st_size <= max_bytes:
            return False
        aside = _predecessor(path)
        with path.open("rb") as source, aside.open("wb") as target:
            # The most recent lines are the most useful.
            source.seek(-max_bytes, os.SEEK_END)
            target.write(source.read(max_bytes))
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True


def forget(path: Path, today: date, keep_days: int) -> bool:
    """Delete lines older than ``keep_days`` from the file and its predecessor. Return whether there were any.

    What remains of a file in use becomes its predecessor, because the predecessor's lines were older still.
    """
    oldest = today - timedelta(days=keep_days)
    aside = _predecessor(path)
    changed = False
    for file in (aside, path):
        try:
            old = _old_bytes(file, oldest)
            if not old:
                continue
            _cut(file, aside, old)
            if file is path:
                os.truncate(path, 0)
        except FileNotFoundError:
            continue
        changed = True
    return changed


def _old_bytes(path: Path, oldest: date) -> int:
    with path.open("rb") as file:
        old = old_bytes(file, oldest)
        facts = os.fstat(file.fileno())
    if old is not None:
        return old
    # No line has a day, so use the time of the last write.
    written = datetime.fromtimestamp(facts.st_mtime, UTC).date()
    return facts.st_size if written < oldest else 0


def _cut(source: Path, target: Path, beginning: int) -> None:
    with source.open("rb") as file:
        file.seek(max(beginning, file.seek(0, os.SEEK_END) - MAX_BYTES))
        rest = file.read(MAX_BYTES)
    if rest:
        private_file.replace(target, rest)
    else:
        target.unlink(missing_ok=True)


def read_day(path: Path, day: date) -> bytes:
    """Return the lines of one day from the file and its predecessor. Blocks."""
    files = [file for file in (_predecessor(path), path) if file.exists()]
    return of_day((line for file in files for line in file.read_bytes().splitlines(keepends=True)), day)


def _predecessor(path: Path) -> Path:
    return path.with_suffix(".log.1")


def tail(path: Path, lines: int, start: int = 0) -> list[str]:
    """Return the last lines after the offset ``start``; empty if there is no such file."""
    return _read_end(path, lines, start)[0]


def ends(folder: Path) -> dict[str, int]:
    """Return the current size of each program's log: a ``start`` for ``tail``."""
    return {path.stem: path.stat().st_size for path in folder.glob("*.log")}


def _read_end(path: Path, lines: int, start: int = 0) -> tuple[list[str], int]:
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            # A file shorter than ``start`` has been rotated.
            file.seek(max(length - _TAIL_BYTES, start if start <= length else 0))
            return file.read().decode(errors="replace").splitlines()[-lines:], file.tell()
    except FileNotFoundError:
        return [], 0


def follow(paths: Mapping[str, Path], lines: int) -> Iterator[LogFileLine]:
    """Yield the last lines of each file, then all new ones, forever."""
    offsets: dict[str, int] = {}
    rest: dict[str, bytes] = {}
    for name, path in paths.items():
        texts, offsets[name] = _read_end(path, lines)
        yield from (LogFileLine(name, text) for text in texts)
    while True:
        for name, path in paths.items():
            if not path.exists():
                continue
            if path.stat().st_size < offsets[name]:
                offsets[name] = 0
            with path.open("rb") as file:
                file.seek(offsets[name])
                added = rest.get(name, b"") + file.read(_TAIL_BYTES)
                offsets[name] = file.tell()
            *whole, rest[name] = added.split(b"\n")
            yield from (LogFileLine(name, text.decode(errors="replace")) for text in whole)
        time.sleep(_FOLLOW_SECONDS)
