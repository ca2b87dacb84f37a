"""Finds keys, tickets and tokens of aimesh in a tree of files: whoever can read the tree can use them. Pure but for the reading.

API keys carry a checksum, so that what only looks like one is not reported; other secrets are known by their form alone.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.identity import credentials

#: Larger files are models and archives; a leaked key is in a file that somebody has written.
MAX_FILE_BYTES = 10 * 1024 * 1024
#: What other tools keep and nobody publishes.
_SKIPPED = frozenset({".git", ".hg", ".svn", "node_modules", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".tox"})
#: Tickets, session tokens and login links: their form, without a checksum that could be compared here.
_OTHERS = re.compile(r"aip_(?P<kind>join|rt|link)_[0-9A-Za-z_-]{40,4000}")
_KINDS = {"live": "API key", "test": "test key", "adm": "ADMIN KEY", "join": "ticket", "rt": "session token", "link": "login link"}


@dataclass(frozen=True, slots=True)
class Leak:
    path: Path
    line: int
    #: In words, such as `API key`.
    kind: str
    #: The first 12 and the last 4 characters: enough to find it in the list of keys, and of no use to others.
    preview: str
    secret: str

    @property
    def is_key(self) -> bool:
        """Whether it can be asked about; the others end by themselves."""
        return credentials.looks_like_api_key(self.secret)


def find(root: Path) -> Iterator[Leak]:
    """In one file, or in all files below a folder, in order. What cannot be read raises OSError; links are not followed."""
    if not root.is_dir():
        yield from _in_file(root)
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(files):
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_FILE_BYTES:
                yield from _in_file(path)


def in_text(text: str) -> Iterator[tuple[str, str]]:
    """Each secret in ``text``, with its kind in words."""
    for match in credentials.FORM.finditer(text):
        if (kind := credentials.kind_of(match[0])) is not None:
            yield match[0], _KINDS[kind]
    for match in _OTHERS.finditer(text):
        yield match[0], _KINDS[match["kind"]]


def _in_file(path: Path) -> Iterator[Leak]:
    # Bytes that are no UTF-8 cannot be part of one; the lines around them may hold some.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if "aip_" in line:
            for secret, kind in in_text(line):
                yield Leak(path, number, kind, f"{secret[:12]}…{secret[-4:]}", secret)
