"""Reads named queries from `queries.sql`, or from the files of a folder `queries`: no SQL stands in Python and none is ever assembled.

-- name: find_user
-- One user by id.
SELECT * FROM users WHERE id = $1;
"""

import re
from dataclasses import dataclass
from pathlib import Path

_HEAD = re.compile(r"^-- name: *(?P<name>\S*) *$", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class NamedQuery:
    name: str
    text: str
    #: A plain SELECT: may be sent twice when its connection dies. (So no SELECT may call a function that writes.)
    only_reads: bool


def load(path: Path) -> dict[str, NamedQuery]:
    """The queries of a file by name; raises ValueError for one that is unnamed, unexplained, empty or named twice."""
    return parse(path.read_text(encoding="utf-8"), str(path))


def load_package(package: Path) -> dict[str, NamedQuery]:
    """Those of `queries.sql`, or of all files in the folder `queries`; raises as ``load``, also for a name that two files have."""
    folder = package / "queries"
    paths = sorted(folder.glob("*.sql")) if folder.is_dir() else [package / "queries.sql"]
    queries: dict[str, NamedQuery] = {}
    for path in paths:
        found = load(path)
        if twice := queries.keys() & found.keys():
            raise ValueError(f"{path}: {', '.join(sorted(twice))} is named in another file, too")
        queries |= found
    return queries


def parse(text: str, source: str) -> dict[str, NamedQuery]:
    """``load`` without the file; ``source`` is for messages."""
    queries: dict[str, NamedQuery] = {}
    before, *rest = _HEAD.split(text)
    if any(line.strip() and not line.startswith("--") for line in before.splitlines()):
        raise ValueError(f"{source}: SQL before the first `-- name:`")
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        comment, _, sql = body.lstrip("\n").partition("\n")
        if not _NAME.fullmatch(name) or name in queries:
            raise ValueError(f"{source}: {name!r} is no name in snake_case, or is there twice")
        if not comment.startswith("-- "):
            raise ValueError(f"{source}: {name} does not say in its first line what it does")
        sql = sql.strip().removesuffix(";")
        if not sql:
            raise ValueError(f"{source}: {name} is empty")
        queries[name] = NamedQuery(name, sql, only_reads=_first_word(sql) == "select")
    return queries


def _first_word(sql: str) -> str:
    code = (line for line in sql.splitlines() if line.strip() and not line.lstrip().startswith("--"))
    return next(code, "").split(maxsplit=1)[0].lower()
