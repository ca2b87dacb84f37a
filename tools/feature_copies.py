"""Copy settings of features into the files of Compose and Swarm, and their boards into Grafana's folder."""

import re
from pathlib import Path

from shared import config, features
from tools import generated

_STACKS = (generated.ROOT / "compose.yaml", generated.ROOT / "deploy" / "swarm" / "stack.yaml")
_BOARDS = generated.ROOT / "deploy" / "grafana" / "dashboards"
_PLACE = re.compile(r"^ +# (\w+): settings of features, by `make docs`$", re.MULTILINE)


def files() -> dict[Path, str]:
    """Return each file with its text; a copy of what is gone has none, and is deleted."""
    left = dict.fromkeys(_BOARDS.glob("feature-*.json"), "")
    boards = {_BOARDS / f"feature-{path.parent.name}.json": path.read_text(encoding="utf-8") for path in features.files("board.json")}
    return left | boards | {path: _with_settings(path.read_text(encoding="utf-8")) for path in _STACKS}


def _with_settings(text: str) -> str:
    """Write the settings between two comments for each service that has some."""
    for place in list(_PLACE.finditer(text)):
        start, service = place[0], place[1]
        indent = " " * (len(start) - len(start.lstrip()))
        names = sorted(setting.variable.name for each, setting in config.settings_of_features() if each == service)
        part = "".join(f"{indent}{name}: ${{{name}:-}}\n" for name in names)
        text = generated.with_part(text, start, part, f"{indent}# {service}: end\n")
    return text
