"""Writes docs/reference/, the rules of Prometheus and the boards of Grafana from the code, and says where they have drifted apart.

python -m tools.docs            writes every generated page
python -m tools.docs --check    changes nothing; exits 1 with a diff if a page is not what the code says
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools import alerts, reference
from tools.boards import writing

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
NOTICE = "<!-- Generated from the code by `python -m tools.docs`. Changes made here are lost. -->\n\n"
#: Lines of diff shown for one page: enough to see what changed.
DIFF_LINES = 30

#: page -> what renders it.
PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": reference.commands,
    "settings.md": reference.settings,
    "rpc.md": reference.methods,
    "access.md": reference.who_may,
    "frames.md": reference.frames,
    "errors.md": reference.failures,
    "subjects.md": reference.subjects,
    "metrics.md": reference.metrics,
    "alerts.md": alerts.page,
}


def render(page: str) -> str:
    """The page as it should stand in the folder."""
    return NOTICE + PAGES[page]().strip() + "\n"


def drift() -> dict[str, str]:
    """page -> the first lines of what differs, for every page that is not what the code says."""
    found = {}
    for page in PAGES:
        path = FOLDER / page
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        wanted = render(page)
        if written != wanted:
            lines = difflib.unified_diff(written.splitlines(), wanted.splitlines(), f"docs/reference/{page}", "the code", lineterm="", n=1)
            found[page] = "\n".join(list(lines)[:DIFF_LINES])
    return found


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        (FOLDER / page).write_text(render(page), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.docs", description="Write docs/reference/ from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 with a diff if a page has drifted")
    if not parser.parse_args().check:
        write()
        alerts.write()
        writing.write()
        return 0
    found = {f"docs/reference/{page}": difference for page, difference in drift().items()} | alerts.drift() | writing.drift()
    for path, difference in found.items():
        print(f"{path} is not what the code says; `python -m tools.docs` writes it\n{difference}\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
