"""The download size of the scripts, and what none of them may contain."""

import gzip
import re
from pathlib import Path

import pytest

from tests.services.web.js.site import FILES, WEB

SCRIPTS = sorted((WEB / "static" / "js").glob("*.js"))
IMPORT = re.compile(r"(?:from|^import) '\./([a-z_]+\.js)'", re.MULTILINE)
#: These turn text into elements or code. The content security policy forbids that, so a script that uses them breaks its page.
FORBIDDEN = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "DOMParser",
    "document.write",
    "eval(",
    "Function(",
    "createContextualFragment",
)
#: For each page: scripts, other files that they need, and the limit of compressed bytes. A whole page may have 150 KB.
PAGES = {
    "overview": (("live.js", "chart.js", "copy.js", "dialog.js"), ("/uplot.js", "/uplot.css", "/scripts.css"), 40_000),
    "charts": (("live.js", "chart.js", "copy.js", "dialog.js", "nav.js"), ("/uplot.js", "/uplot.css", "/scripts.css"), 40_000),
    "playground": (("playground.js", "copy.js", "dialog.js"), ("/scripts.css",), 28_000),
    "invitation": (("invitation.js", "copy.js", "dialog.js"), ("/scripts.css",), 9_300),
    "keys": (("copy.js", "dialog.js"), ("/scripts.css",), 6_000),
}


def with_imports(names: tuple[str, ...]) -> set[Path]:
    found: set[Path] = set()
    waiting = [WEB / "static" / "js" / name for name in names]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [path.parent / name for name in IMPORT.findall(path.read_text(encoding="utf-8"))]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_page_weight(page: str) -> None:
    names, files, most = PAGES[page]
    paths = with_imports(names) | {FILES[name][0] for name in files}
    raw = sum(len(path.read_bytes()) for path in paths)
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in paths}
    print(f"{page}: {sum(sizes.values())} bytes compressed, {raw} as they are: {sizes}")
    assert sum(sizes.values()) < most


@pytest.mark.parametrize("path", [*SCRIPTS, FILES["/uplot.js"][0]], ids=lambda path: path.name)
def test_no_script_writes_html_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [word for word in FORBIDDEN if word in text]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_says_what_it_owns_and_calls_no_third_party(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// ")
    # Static imports of our own modules from the same folder only: no packages, third parties or dynamic imports.
    assert len(re.findall(r"^import ", text, re.MULTILINE)) == len(IMPORT.findall(text))
    code = re.sub(r"/\*\*.*?\*/", "", text, flags=re.DOTALL)
    assert not re.search(r"import\(|https?://[a-z]", code)
    assert text.count("\n") <= 400
