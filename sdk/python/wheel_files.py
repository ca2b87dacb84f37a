"""Adds `aicli` to the wheel of aimesh-client: the package `cli`, and of `shared` what the wheel of aimesh-server leaves."""

import tomllib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What commands need of each feature. The wheel of aimesh-server has the rest.
OF_FEATURES = ("__init__.py", "*/__init__.py", "*/feature.py", "*/contract.py", "*/lists.py", "*/lists/*.py", "*/cli/*.py")


class AicliFiles(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # Development has these packages from the checkout.
        if version != "editable":
            build_data["force_include"].update({str(path): str(name) for path, name in find_files(Path(self.root).parents[1])})


def find_files(checkout: Path) -> list[tuple[Path, Path]]:
    """Return each file and its name in the wheel."""
    server = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    elsewhere = {*map(Path, server["only-include"])} - {Path("features")}
    names = (path.relative_to(checkout) for package in ("cli", "shared") for path in sorted((checkout / package).rglob("*.py")))
    return [(checkout / name, name) for name in [*names, *_of_features(checkout)] if not elsewhere & {name, *name.parents}]


def _of_features(checkout: Path) -> list[Path]:
    found = {path for pattern in OF_FEATURES for path in (checkout / "features").glob(pattern)}
    return sorted(path.relative_to(checkout) for path in found)
