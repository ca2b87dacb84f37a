"""The tests of the pure cores, for `make quick`: of each module that the import contract keeps free of I/O, the test with its name."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONTRACT = "Rules decide; they never do I/O"


def find_tests() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = next(each["source_modules"] for each in project["tool"]["importlinter"]["contracts"] if each["name"] == CONTRACT)
    places = [Path("tests", *module.split(".")) for module in modules]
    return [f"{found}" for place in places for found in (place, place.with_name(f"test_{place.name}.py")) if (ROOT / found).exists()]


if __name__ == "__main__":
    print(*find_tests())
