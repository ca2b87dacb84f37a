"""Write generated files, and find those that differ from what the code gives."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Lines of diff shown for one file.
DIFF_LINES = 30


def drift(wanted: Mapping[Path, str]) -> dict[str, str]:
    """Return path -> the first lines of its diff."""
    found = {}
    for path, text in sorted(wanted.items()):
        written = path.read_text(encoding="utf-8") if path.exists() else ""
        if written != text:
            shown = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
            lines = difflib.unified_diff(written.splitlines(), text.splitlines(), shown, "generated", lineterm="", n=1)
            found[shown] = "\n".join(list(lines)[:DIFF_LINES])
    return found


def write(wanted: Mapping[Path, str]) -> None:
    """A file without text is deleted."""
    for path, text in wanted.items():
        if text:
            path.write_text(text, encoding="utf-8")
        else:
            path.unlink(missing_ok=True)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; bars in cells are escaped."""
    titles, *lines = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows))
    return "\n".join([f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|", *(f"| {' | '.join(line)} |" for line in lines)])


def with_part(text: str, start: str, part: str, end: str) -> str:
    """Return the text with another part between the lines ``start`` and ``end``."""
    before, _, rest = text.partition(f"{start}\n")
    return f"{before}{start}\n{part}{end}{rest.partition(end)[2]}"
