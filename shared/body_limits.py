"""How large bodies may be, by path. Reverse proxies in front must let them through: deploy/proxy and the chart have the same numbers."""

from collections.abc import Mapping
from typing import Final

from shared import features
from shared.protocol import wire

#: Of all other paths: prompts with images. IMAGE_MAX_BYTES may raise it; most paths take less.
GENERAL_BYTES: Final = wire.MAX_REQUEST_BYTES
#: Path -> the limit there and below. Proxies pass these bodies on as they come.
LARGE_BYTES: Final[Mapping[str, int]] = {path: most for feature in features.known().values() for path, most in feature.large_bodies.items()}


def of_path(path: str) -> int:
    return next((most for large, most in LARGE_BYTES.items() if path == large or path.startswith(f"{large}/")), GENERAL_BYTES)
