"""What the tests of features add to those of the core, found as the core finds features: `tests/features/NAME/PLACE.py`."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from shared import features

_HERE = Path(__file__).parent / "features"


def modules(place: str) -> list[ModuleType]:
    """``place``: such as `web.fake_mesh`."""
    path = Path(*place.split(".")).with_suffix(".py")
    return [import_module(f"tests.features.{name}.{place}") for name in features.known() if (_HERE / name / path).exists()]


def files(pattern: str) -> list[Path]:
    """``pattern``: such as `cli/command_lines.txt` or `deploy/*.test.yml`."""
    return [path for feature in features.known() for path in sorted((_HERE / feature).glob(pattern))]
