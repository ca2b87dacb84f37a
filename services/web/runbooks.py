"""Load the runbooks of the alerts, so that the alerts page can link to them."""

import re
from collections.abc import Mapping
from pathlib import Path

from shared import features

_PACKAGE = Path(__file__).parent
#: The wheel has the runbooks inside the package; a checkout and the container image have them under docs.
_FOLDERS = (_PACKAGE / "runbooks", _PACKAGE.parents[1] / "docs" / "runbooks")
_HEADING = re.compile(r"\A# .*\n+")
#: Headings have no anchors on the page.
_ANCHOR_LINK = re.compile(r"\[([^\]]*)\]\(#[^)]*\)")
_RUNBOOK_LINK = re.compile(r"\[([^\]]*)\]\((\w+)\.md(?:#[^)]*)?\)")
#: A blank line, or a line that starts a block.
_BLOCK = re.compile(r"\s*(?:$|#|[-*] |[>|]|\d+\. |```)")
_DOCS_LINK = re.compile(r"\[([^\]]*)\]\(\.\./([^)]*)\)")


def load() -> Mapping[str, str]:
    """Return the Markdown of each runbook by name; empty if they are not installed."""
    folder = next((each for each in _FOLDERS if each.is_dir()), None)
    folders = (*([] if folder is None else [folder]), *features.files("runbooks"))
    return {path.stem: path.read_text(encoding="utf-8") for each in folders for path in sorted(each.glob("*.md"))}


def prepare(text: str, root: str) -> str:
    """Return a runbook without its heading, with links to other runbooks below the URL ``root``. Pure."""
    body = _ANCHOR_LINK.sub(r"\1", _HEADING.sub("", text))
    body = _unwrap(re.sub(r"^##", "#", body, flags=re.MULTILINE))
    return _DOCS_LINK.sub(r"\1 (`docs/\2`)", _RUNBOOK_LINK.sub(rf"[\1]({root}/\2)", body))


def _unwrap(text: str) -> str:
    """Join the lines of each paragraph, because markdown.js keeps line breaks."""
    lines: list[str] = []
    is_code = is_open = False
    for line in text.split("\n"):
        is_fence = line.lstrip().startswith("```")
        if is_open and not is_code and not _BLOCK.match(line):
            lines[-1] += f" {line.strip()}"
            continue
        lines.append(line)
        is_code ^= is_fence
        # Headings, tables and code end with their line.
        is_open = not is_code and not is_fence and bool(line.strip()) and not line.startswith(("#", "|"))
    return "\n".join(lines)
