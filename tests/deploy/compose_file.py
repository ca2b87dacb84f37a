"""compose.yaml as Compose reads it: anchors merged, variables replaced."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
#: `${NAME}`, `${NAME:-default}`, `${NAME:+other}`; a default may contain one of the last two forms.
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::-(?P<default>(?:\$\{[A-Z_]+:[+-][^}]*\}|[^}])*)|:\+(?P<other>[^}]*))?\}")
#: Our five services with their variants under profiles; the others are servers and one-shot steps.
OURS = ("auth", "gateway", "inference", "inference-gpu", "inference-ollama", "inference-openai", "inference-http", "metrics", "web")


@cache
def load(path: str = "compose.yaml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    return content


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load()["services"]
    return found


def variables() -> set[str]:
    """Return the variables that `.env` may set."""
    return {match["name"] for match in _VARIABLE.finditer((ROOT / "compose.yaml").read_text(encoding="utf-8"))}


def resolve(text: str, environment: Mapping[str, str]) -> str:
    """Resolve a value as Compose does when `.env` has these variables."""

    def replace(match: re.Match[str]) -> str:
        value = environment.get(match["name"], "")
        if match["other"] is not None:
            return match["other"] if value else ""
        return value or resolve(match["default"] or "", environment)

    return _VARIABLE.sub(replace, text)


def environment_of(service: str, dotenv: Mapping[str, str] | None = None) -> dict[str, str]:
    found: dict[str, str] = services()[service].get("environment", {})
    return {name: resolve(str(value), dotenv or {}) for name, value in found.items()}


def mounted(service: str) -> dict[str, Path]:
    """Return path in the container -> the file or folder of this checkout that is mounted there."""
    entries = (entry.split(":") for entry in services()[service].get("volumes", []))
    return {place: ROOT / here for here, place, *_ in entries if here.startswith("./")}


def module_of(service: str) -> str:
    """Return the module that the service's command runs."""
    python, flag, module = services()[service]["command"]
    assert (python, flag) == ("python", "-m"), f"{service}: the command is not python -m …"
    return str(module)
