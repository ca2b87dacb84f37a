"""Generate the synchronous client of the Python SDK from the asynchronous one.  `python -m tools.docs` runs it."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools import generated

PACKAGE = generated.ROOT / "sdk" / "python" / "src" / "aimesh"
#: Ruff takes its settings from the folder of this name.
STYLE = PACKAGE / "generated.py"
NOTICE = "# Generated from {source} by `python -m tools.docs`. Changes made here are lost.\n"

#: generated module -> its source.
SOURCES: Mapping[str, str] = {"client.py": "async_client.py", "wire.py": "async_wire.py"}
#: Replaced in this order.
REPLACEMENTS: tuple[tuple[str, str], ...] = (
    (r"for programs with asyncio", "for programs without asyncio"),
    (r"Use it in one event loop, with ``async with``", "It is safe in several threads. Use it with ``with``"),
    (r"A timeout or a cancellation also stops", "A timeout or Ctrl-C also stops"),
    (r"in pieces\. Use it with ``async with``", "in pieces. Use it with ``with``, in one thread"),
    (r"Callable\[\[Renew\], Awaitable\[None\]\]", "Callable[[Renew], None]"),
    (r"import Awaitable, Callable", "import Callable"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit|iter|next)__", r"__\1__"),
    (r"\bhttpx\.AsyncClient\b", "httpx.Client"),
    (r"\baclose\b", "close"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync_io\b", "sync_io"),
    (r"\basync_wire\b", "wire"),
)


def generate(name: str) -> str:
    source = SOURCES[name]
    text = (PACKAGE / source).read_text(encoding="utf-8")
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return _formatted(NOTICE.format(source=source) + text)


def files() -> dict[Path, str]:
    return {PACKAGE / name: generate(name) for name in SOURCES}


def _formatted(text: str) -> str:
    """Shorter names change line breaks and the order of imports."""
    ruff = str(Path(sys.executable).parent / "ruff")
    for arguments in (["check", "--select=I", "--fix", "--quiet"], ["format"]):
        command = [ruff, *arguments, "--stdin-filename", str(STYLE), "-"]
        done = subprocess.run(command, cwd=generated.ROOT, input=text, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603 - our own
        text = done.stdout
    return text
