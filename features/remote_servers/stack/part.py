"""What other servers add to a stack: a worker for each backend, and the providers that may be behind them."""

import re
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from features.remote_servers.settings import ServerStackSettings
from shared import addresses
from stack.features import MoreWorker, StackPart
from stack.settings import StackSettings

_NAMES_SERVICE = re.compile(r"""^[\s-]*["']?service["']?\s*:""", re.MULTILINE)
_MAX_REGISTRY_CHARACTERS = 1024 * 1024
#: See `worker.upstreams`.
_MAX_UPSTREAMS_BYTES = 256 * 1024


def _workers(settings: StackSettings) -> dict[str, MoreWorker]:
    own = settings.of(ServerStackSettings)
    uses_openai = own.openai_key or own.openai_url or own.openai_upstreams or own.remote_model_hosts
    return {
        "ollama": MoreWorker(is_wanted=bool(own.ollama_url), port=own.ollama_port),
        "openai": MoreWorker(is_wanted=bool(uses_openai), port=own.openai_port),
        "http": MoreWorker(is_wanted=settings.models_yaml is not None and _names_services(settings.models_yaml), port=own.http_port),
    }


def _names_services(file: Path) -> bool:
    """The first worker reports what is wrong with the file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return _NAMES_SERVICE.search(opened.read(_MAX_REGISTRY_CHARACTERS)) is not None
    except OSError:
        return False


def _providers(settings: StackSettings) -> Iterator[str]:
    own = settings.of(ServerStackSettings)
    if own.ollama_url and _may_be_outside(own.ollama_url):
        yield "ollama"
    if own.openai_upstreams is not None:
        yield from _of_upstreams(own.openai_upstreams)
    elif _may_be_outside(own.openai_url) if own.openai_url else own.openai_key:
        yield "openai"


def _of_upstreams(path: Path) -> Iterator[str]:
    """The worker reports what is wrong with the file."""
    try:
        with path.open("rb") as file:
            tables = tomllib.loads(file.read(_MAX_UPSTREAMS_BYTES).decode())
    except (OSError, ValueError):
        return
    for name, table in tables.items():
        if isinstance(table, dict):
            external = table.get("external")
            if external or (external is None and _may_be_outside(str(table.get("url", "")))):
                yield str(table.get("provider", name))


def _may_be_outside(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        ip_address(host)
    except ValueError:
        return host not in addresses.LOOPBACK
    return addresses.is_public(host)


PART = StackPart(workers=_workers, providers=_providers)
