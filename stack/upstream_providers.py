"""Names the providers of the configured upstreams, so that the operator who configures them need not allow them a second time. Pure but for
the file of upstreams."""

import tomllib
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from shared import addresses
from stack.settings import StackSettings

#: See services.inference.upstreams.
_MAX_FILE_BYTES = 256 * 1024


def find(settings: StackSettings) -> tuple[str, ...]:
    """Return EXTERNAL_PROVIDERS, or else the providers whose servers may be outside. The workers decide whether they are."""
    return settings.external_providers or tuple(sorted(set(_find(settings))))


def _find(settings: StackSettings) -> Iterator[str]:
    if settings.ollama_url and _may_be_outside(settings.ollama_url):
        yield "ollama"
    if settings.openai_upstreams is not None:
        yield from _of_file(settings.openai_upstreams)
    elif settings.openai_url or settings.openai_key:
        if not settings.openai_url or _may_be_outside(settings.openai_url):
            yield "openai"


def _of_file(path: Path) -> Iterator[str]:
    """The worker reports what is wrong with the file."""
    try:
        with path.open("rb") as file:
            tables = tomllib.loads(file.read(_MAX_FILE_BYTES).decode())
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
