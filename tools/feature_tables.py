"""Write the table of features into docs/architecture.md, and the acts of features into the reference of the audit log."""

from importlib import import_module
from pathlib import Path

from shared import features
from tools import generated

_ARCHITECTURE = generated.ROOT / "docs" / "architecture.md"
_AUDIT = generated.ROOT / "docs" / "reference" / "audit.md"
_START, _END = "<!-- features, by `make docs` -->", "<!-- end -->"


def files() -> dict[Path, str]:
    acts = ((", ".join(f"`{name}`" for name in (*each.harmless, *each.restricting)), each.meaning) for each in features.acts())
    tables = {
        _ARCHITECTURE: generated.table(("feature", "what it adds", "needs", "commands"), map(_row, features.known())),
        _AUDIT: generated.table(("action", "about"), acts),
    }
    texts = {path: path.read_text(encoding="utf-8") for path in tables}
    return {path: generated.with_part(text, _START, f"\n{tables[path]}\n\n", _END) for path, text in texts.items()}


def _row(name: str) -> tuple[str, ...]:
    feature, meaning = features.known()[name], import_module(f"features.{name}").__doc__ or ""
    commands = ", ".join(f"`{each.line}`" for each in feature.commands)
    return f"[`{name}`](../features/{name}/README.md)", meaning.rstrip("."), ", ".join(sorted(feature.needs)) or "–", commands or "–"
