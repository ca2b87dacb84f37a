"""Write generated files, and find those that differ from what the code gives."""

import difflib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Lines of diff shown for one file.
DIFF_LINES = 30


def drift(folder: Path, wanted: Mapping[str, str], *, obsolete: str = "") -> dict[str, str]:
    """Return path -> the first lines of its diff, also for files that match the pattern ``obsolete`` and are not generated any more."""
    names = {*wanted, *(path.name for path in _obsolete(folder, wanted, obsolete))}
    found = {}
    for name in sorted(names):
        path = folder / name
        written, text = path.read_text(encoding="utf-8") if path.exists() else "", wanted.get(name, "")
        if written != text:
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            lines = difflib.unified_diff(written.splitlines(), text.splitlines(), str(shown), "generated", lineterm="", n=1)
            found[str(shown)] = "\n".join(list(lines)[:DIFF_LINES])
    return found


def write(folder: Path, wanted: Mapping[str, str], *, obsolete: str = "") -> None:
    """Write all files, and delete those that match the pattern ``obsolete`` and are not generated any more."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _obsolete(folder, wanted, obsolete):
        path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def with_part(path: Path, start: str, part: str, end: str) -> str:
    """Return the file with another text between the lines ``start`` and ``end``."""
    before, _, rest = path.read_text(encoding="utf-8").partition(f"{start}\n")
    return f"{before}{start}\n{part}{end}{rest.partition(end)[2]}"


def _obsolete(folder: Path, wanted: Mapping[str, str], pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if path.name not in wanted] if pattern else []
