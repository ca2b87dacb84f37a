"""Writes deploy/grafana/dashboards from the boards; `python -m tools.docs` does it, too."""

import difflib
import json
from pathlib import Path
from typing import Final

from tools.boards.machines import MESH, WORKERS
from tools.boards.panel import Dashboard, render
from tools.boards.requests import GATEWAY, OVERVIEW
from tools.boards.trust import LEDGER, SECURITY

ALL: Final[tuple[Dashboard, ...]] = (OVERVIEW, GATEWAY, WORKERS, LEDGER, MESH, SECURITY)
ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy" / "grafana" / "dashboards"
#: Lines of diff shown for one file.
_DIFF_LINES: Final = 30


def files() -> dict[str, str]:
    """Name -> text."""
    return {f"{one.board}.json": json.dumps(render(one), indent=2, ensure_ascii=False) + "\n" for one in ALL}


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def drift() -> dict[str, str]:
    """Path -> what differs."""
    found = {}
    for name, text in files().items():
        path = FOLDER / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there != text:
            difference = difflib.unified_diff(there.splitlines(), text.splitlines(), "there", "from the code", lineterm="")
            found[str(path.relative_to(ROOT))] = "\n".join(list(difference)[:_DIFF_LINES])
    return found
