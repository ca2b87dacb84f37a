"""Reads named queries from `queries.sql` or the files of a folder `queries`. Python code contains and assembles no SQL.

-- name: find_user
-- One user by id.
SELECT * FROM users WHERE id = $1;

A line `-- replica` below the comment lets a replica answer (see ``replica_reads``).
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

_HEAD = re.compile(r"^-- name: *(?P<name>\S*) *$", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_READING = {"select", "with"}
_SETS = re.compile(r"select\s+set_config\(", re.IGNORECASE)
_REPLICA = re.compile(r"^-- replica *\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class NamedQuery:
    name: str
    text: str
    #: A plain SELECT, which may be sent again if its connection dies. So no SELECT may call a function that writes.
    only_reads: bool
    #: A replica may answer.
    on_replica: bool = False
    #: It only changes settings of its transaction.
    only_sets: bool = False


def load(path: Path) -> dict[str, NamedQuery]:
    """Return a file's queries by name. Raises ValueError for one without a name, comment or text, or with a name used twice."""
    return parse(path.read_text(encoding="utf-8"), str(path))


def load_package(*packages: Path) -> dict[str, NamedQuery]:
    """Return the queries of `queries.sql` or of all files in `queries`, or of a file. Raises as ``load``, also for a name in two files."""
    queries: dict[str, NamedQuery] = {}
    for path in itertools.chain.from_iterable(map(_files_of, packages)):
        found = load(path)
        if twice := queries.keys() & found.keys():
            raise ValueError(f"{path}: {', '.join(sorted(twice))} is also in another file")
        queries |= found
    return queries


def _files_of(package: Path) -> list[Path]:
    if package.is_file():
        return [package]
    folder = package / "queries"
    return sorted(folder.glob("*.sql")) if folder.is_dir() else [package / "queries.sql"]


def parse(text: str, source: str) -> dict[str, NamedQuery]:
    """Like ``load``, but from text. ``source`` is for messages."""
    queries: dict[str, NamedQuery] = {}
    before, *rest = _HEAD.split(text)
    if any(line.strip() and not line.startswith("--") for line in before.splitlines()):
        raise ValueError(f"{source}: SQL before the first `-- name:`")
    for name, body in zip(rest[::2], rest[1::2], strict=True):
        comment, _, sql = body.lstrip("\n").partition("\n")
        if not _NAME.fullmatch(name) or name in queries:
            raise ValueError(f"{source}: {name!r} is not a snake_case name, or is used twice")
        if not comment.startswith("-- "):
            raise ValueError(f"{source}: {name} needs a comment in its first line that says what it does")
        sql, marks = _REPLICA.subn("", sql)
        sql = sql.strip().removesuffix(";")
        if not sql:
            raise ValueError(f"{source}: {name} is empty")
        code = _first_code(sql)
        first = code.split(maxsplit=1)[0].lower()
        if marks and first not in _READING:
            raise ValueError(f"{source}: {name} is marked `-- replica`, but does not read")
        queries[name] = NamedQuery(name, sql, first == "select", on_replica=marks > 0, only_sets=_SETS.match(code) is not None)
    return queries


def _first_code(sql: str) -> str:
    code = (line for line in sql.splitlines() if line.strip() and not line.lstrip().startswith("--"))
    return next(code, "-").lstrip()
