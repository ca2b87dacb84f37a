"""Choose the text format for a scraper by its Accept header."""

from collections.abc import Iterable
from typing import Final

from shared.api.metrics import MetricsTextFormat

CONTENT_TYPES: Final = {
    MetricsTextFormat.PROMETHEUS: "text/plain; version=0.0.4; charset=utf-8",
    MetricsTextFormat.OPENMETRICS: "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

_OPENMETRICS: Final = "application/openmetrics-text"
#: The versions that match our output; without one, the client accepts any.
_VERSIONS: Final = {"", "1.0.0", "0.0.1"}
_PLAIN: Final = {"text/plain", "text/*", "*/*"}


def choose(headers: Iterable[tuple[bytes, bytes]]) -> MetricsTextFormat:
    """Return OpenMetrics if the Accept header (RFC 9110 §12.5.1) names it and does not prefer the text format."""
    wished = plain = 0.0
    for name, value in headers:
        if name != b"accept":
            continue
        for one in value.decode("latin-1").lower().split(","):
            kind, version, quality = _range(one)
            if kind == _OPENMETRICS and version in _VERSIONS:
                wished = max(wished, quality)
            elif kind in _PLAIN:
                plain = max(plain, quality)
    return MetricsTextFormat.OPENMETRICS if wished and wished >= plain else MetricsTextFormat.PROMETHEUS


def _range(text: str) -> tuple[str, str, float]:
    kind, *parameters = (part.strip() for part in text.split(";"))
    values = {name.strip(): value.strip(' "') for name, _, value in (parameter.partition("=") for parameter in parameters)}
    try:
        quality = float(values.get("q", "1"))
    except ValueError:
        return kind, "", 0.0
    return kind, values.get("version", ""), quality if 0 <= quality <= 1 else 0.0
