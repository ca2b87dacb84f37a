"""Find keys, tickets and tokens of aimesh in files: anyone who can read the files can use them. Pure, apart from reading.

API keys have a checksum, so lookalikes are not reported; other secrets are recognized by their format alone.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.identity import credentials

#: Larger files are models and archives; keys leak in files that people write.
MAX_FILE_BYTES = 10 * 1024 * 1024
#: Folders of other tools, which nobody publishes.
_SKIPPED = frozenset({".git", ".hg", ".svn", "node_modules", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".tox"})
#: Tickets, session tokens and login links have no checksum that could be verified here.
_OTHERS = re.compile(r"aip_(?P<kind>join|rt|link)_[0-9A-Za-z_-]{40,4000}")
_KINDS = {"live": "API key", "test": "test key", "adm": "ADMIN KEY", "join": "ticket", "rt": "session token", "link": "login link"}


@dataclass(frozen=True, slots=True)
class Leak:
    path: Path
    line: int
    #: Such as `API key`.
    kind: str
    #: The first 12 and last 4 characters: enough to find the key in a list, and useless to others.
    preview: str
    secret: str

    @property
    def is_key(self) -> bool:
        """Return whether auth can be asked about it; other secrets expire soon."""
        return credentials.looks_like_api_key(self.secret)


def find(root: Path) -> Iterator[Leak]:
    """Search one file, or all files below a folder, in order. Raises OSError for unreadable ones; does not follow links."""
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
    """Return each secret in ``text``, with its kind."""
    for match in credentials.FORM.finditer(text):
        if (kind := credentials.kind_of(match[0])) is not None:
            yield match[0], _KINDS[kind]
    for match in _OTHERS.finditer(text):
        yield match[0], _KINDS[match["kind"]]


def _in_file(path: Path) -> Iterator[Leak]:
    # Invalid UTF-8 cannot be part of a secret, but other lines can contain some.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if "aip_" in line:
            for secret, kind in in_text(line):
                yield Leak(path, number, kind, f"{secret[:12]}…{secret[-4:]}", secret)
