"""Copy settings of features into Compose and Swarm, their boards into Grafana's folder, and their large bodies into proxies."""

import re
from pathlib import Path

from shared import body_limits, config, features
from tools import generated

_STACKS = (generated.ROOT / "compose.yaml", generated.ROOT / "deploy" / "swarm" / "stack.yaml")
_BOARDS = generated.ROOT / "deploy" / "grafana" / "dashboards"
_PLACE = re.compile(r"^ +# (\w+): settings of features, by `make docs`$", re.MULTILINE)

_PROXIES = generated.ROOT / "deploy" / "proxy"
#: Proxy -> a line about all paths with large bodies, and one for each.
_ROWS = {
    "Caddyfile": ("\t@prompts not path", "\timport body {path}* {kib}KiB"),
    "haproxy.cfg": ("", "    http-request set-var(req.most_bytes) int({bytes}) if {{ path_beg {path} }}"),
    "nginx.conf": (
        "",
        "        location {path} {{ client_max_body_size {kib}k; proxy_request_buffering off; proxy_pass http://{to}; }}",
    ),
}
_LARGE, _END_LARGE = "# Longer bodies, passed on as they come. By `make docs`.", "# The end of longer bodies."


def files() -> dict[Path, str]:
    """Return each file with its text; a copy of what is gone has none, and is deleted."""
    left = dict.fromkeys(_BOARDS.glob("feature-*.json"), "")
    boards = {_BOARDS / f"feature-{path.parent.name}.json": path.read_text(encoding="utf-8") for path in features.files("board.json")}
    return left | boards | {path: _with_settings(path) for path in _STACKS} | _proxies()


def _with_settings(path: Path) -> str:
    """Write the settings between two comments for each service that has some."""
    text = path.read_text(encoding="utf-8")
    for place in list(_PLACE.finditer(text)):
        start, service = place[0], place[1]
        indent = " " * (len(start) - len(start.lstrip()))
        found = {setting.variable.name: setting.variable for each, setting in config.settings_of_features() if each == service}
        part = "".join(f"{indent}{_name(each)}: ${{{_name(each)}:-{_default(each, path)}}}\n" for _, each in sorted(found.items()))
        text = generated.with_part(text, start, part, f"{indent}# {service}: end\n")
    return text


def _name(variable: config.Variable) -> str:
    return f"{variable.name}_FILE" if variable.secret else variable.name


def _default(variable: config.Variable, path: Path) -> str:
    """In Compose, a store is a volume that replicas share; a swarm has none that all tasks reach."""
    return f"${{OBJECT_STORE:-/var/lib/aimesh/{variable.folder}}}" if variable.folder and path.name == "compose.yaml" else ""


def _proxies() -> dict[Path, str]:
    large, found = body_limits.LARGE_BYTES.items(), dict[Path, str]()
    exceptions = "".join(f" {path}*" for path, _ in large)
    for name, (head, row) in _ROWS.items():
        path = _PROXIES / name
        indent = row[: len(row) - len(row.lstrip())]
        rows = [
            row.format(path=each, bytes=most, kib=most // 1024, to="gateways" if each.startswith("/v1/") else "web") for each, most in large
        ]
        part = "".join(f"{line}\n" for line in (*([f"{head}{exceptions or ' /none'}"] if head else []), *rows))
        found[path] = generated.with_part(path.read_text(encoding="utf-8"), f"{indent}{_LARGE}", part, f"{indent}{_END_LARGE}\n")
    return found
