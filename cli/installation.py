"""Where aicli is installed. install.sh has a folder for each version, and a link to the current one."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Installation:
    """The folder of install.sh. It writes the files."""

    home: Path

    @property
    def current(self) -> Path:
        """A link to the folder of the current version. Updates move it."""
        return self.home / "current"

    @property
    def mesh(self) -> str:
        """The URL of the mesh that the packages came from; empty if it was a release."""
        return (self.home / "mesh").read_text(encoding="utf-8").strip()

    @property
    def ca_file(self) -> Path | None:
        """The certificate of a mesh that no authority signed."""
        file = self.home / "mesh.pem"
        return file if file.is_file() else None

    def links(self, environment: Mapping[str, str]) -> list[Path]:
        """Return the commands on a PATH that lead here."""
        folders = (Path(environment.get("HOME") or "~").expanduser() / ".local/bin", Path("/usr/local/bin"))
        found = (folder / "aicli" for folder in folders)
        return [path for path in found if path.is_symlink() and path.readlink().is_relative_to(self.current)]

    def version(self) -> str:
        """Return what tells the versions apart."""
        return self.current.readlink().name


def find(prefix: Path) -> Installation | None:
    """Return the installation that this Python belongs to; None if aicli was installed in another way."""
    found = Installation(prefix.parent)
    return found if found.current.is_symlink() and (found.home / "mesh").is_file() else None


def program() -> Path:
    """Return the path of aicli that stays the same when it is updated."""
    found = find(Path(sys.prefix))
    return (Path(sys.prefix) if found is None else found.current) / "bin" / "aicli"
