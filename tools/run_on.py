"""The table of what was run where: docs/reference/run-on.toml, its page, and the program with which a test records a run.

python -m tools.run_on worker-line "Debian 13"
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, date, datetime

import msgspec

from tools import generated, setup_steps

FILE = generated.ROOT / "docs" / "reference" / "run-on.toml"
_PAGE = """# What was run where

The tests of `make test` run on one Linux machine, with networks and machines made up there. This table has what they can't show: the lines
that a stranger types, on systems as they are installed, and what needs other machines or accounts. The nightly tests of the lines write
their rows (`docs/reference/run-on.toml`); "never run" means that nobody has.

{table}
"""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: What a test calls it.
    id: str
    what: str
    #: The system.
    where: str
    #: ISO 8601; empty: never run.
    day: str = ""
    commit: str = ""
    #: The words of README's list of what was never run; empty if it isn't in it.
    readme: str = ""


def load() -> tuple[Run, ...]:
    return msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8"))["runs"], tuple[Run, ...])


def page() -> str:
    rows = ((run.what, run.where, run.day or "never run", f"`{run.commit}`" if run.commit else "–") for run in load())
    return _PAGE.format(table=generated.table(("what", "on", "last run", "commit"), rows))


def record(id: str, where: str, day: date, commit: str) -> None:  # noqa: A002 - as in the file
    """Note that it was run there. Raises SetupFailed if there is no such row."""
    text = FILE.read_text(encoding="utf-8")
    found = next((run for run in load() if (run.id, run.where) == (id, where)), None)
    if found is None:
        raise setup_steps.SetupFailed(f"{FILE.name} has no row {id!r} on {where!r}; it has {', '.join(sorted(set(_names())))}")
    row = re.compile(
        rf'(\[\[runs\]\]\nid = "{re.escape(id)}"\nwhat = [^\n]+\nwhere = "{re.escape(where)}"\n)(?:day = [^\n]*\ncommit = [^\n]*\n)?'
    )
    setup_steps.replace_text(FILE, row.sub(rf'\g<1>day = "{day:%Y-%m-%d}"\ncommit = "{commit}"\n', text, count=1))


def _names() -> Iterator[str]:
    return (f"{run.id} on {run.where}" for run in load())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", help="what was run")
    parser.add_argument("where", help="the system")
    given = parser.parse_args()
    command = ["git", "rev-parse", "--short=8", "HEAD"]
    commit = subprocess.run(command, cwd=generated.ROOT, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
    return setup_steps.exit_code(lambda: record(given.id, given.where, datetime.now(UTC).date(), commit))


if __name__ == "__main__":
    sys.exit(main())
