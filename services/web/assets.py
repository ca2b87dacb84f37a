"""Load and compress the static files once at startup, under a path with a content hash.

All files share one version in their path. So a module imports its neighbors in the same version, and browsers can cache everything
for a year.
"""

import gzip
import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parent
_MEDIA_TYPES = {".css": "text/css", ".svg": "image/svg+xml", ".js": "text/javascript"}
#: name -> file installed by npm.
_FROM_NPM = {
    "npm/uplot.js": "npm/node_modules/uplot/dist/uPlot.iife.min.js",
    "npm/uplot.css": "npm/node_modules/uplot/dist/uPlot.min.css",
}
#: How a template and a module reference static files.
_OF_TEMPLATE = re.compile(r"""\bstatic\(\s*['"]([^'"]+)['"]\s*\)""")
_OF_MODULE = re.compile(r"""^\s*(?:import|export)\b[^'"\n]*['"](\.[^'"\n]+)['"]""", re.MULTILINE)
#: Below this size, the header costs more than gzip saves.
_WORTH_PACKING = 512


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    media_type: str
    #: Compressed with gzip; None if that is no smaller.
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class Assets:
    #: By path below `/static/<version>/`.
    files: Mapping[str, Asset]
    version: str

    def address(self, name: str) -> str:
        """Return the URL path of a file. Raises KeyError for an unknown file; ``find_missing`` finds those at startup."""
        if name not in self.files:
            raise KeyError(f"there is no static file {name!r}")
        return f"/static/{self.version}/{name}"

    def find_missing(self, templates: Iterable[str]) -> list[str]:
        """Return the files that templates or our modules reference and that do not exist."""
        named = {name for text in templates for name in _OF_TEMPLATE.findall(text)}
        for name, asset in self.files.items():
            if name.endswith(".js") and not name.startswith("npm/"):
                folder = posixpath.dirname(name)
                found = _OF_MODULE.findall(asset.content.decode())
                named |= {posixpath.normpath(posixpath.join(folder, neighbor)) for neighbor in found}
        return sorted(named - set(self.files))


def load() -> Assets:
    root = _PACKAGE / "static"
    found = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.suffix in _MEDIA_TYPES}
    found |= {name: path for name, place in _FROM_NPM.items() if (path := _PACKAGE / place).exists()}
    files = {name: _read(path) for name, path in found.items()}
    version = hashlib.sha256(b"".join(name.encode() + asset.content for name, asset in sorted(files.items()))).hexdigest()[:12]
    return Assets(files, version)


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    # No timestamp, so that all replicas serve the same bytes.
    packed = gzip.compress(content, 9, mtime=0) if len(content) > _WORTH_PACKING else content
    return Asset(content, _MEDIA_TYPES[path.suffix], packed if len(packed) < len(content) else None)
