"""How large bodies may be, by path. Reverse proxies in front must let them through: deploy/proxy and the chart have the same numbers."""

from collections.abc import Mapping
from typing import Final

from shared.api import files
from shared.protocol import wire

FILES, MESSAGE_BATCHES, PAGE_OF_FILES = "/v1/files", "/v1/messages/batches", "/jobs/files"
#: What a form has beside its file, at most.
FORM_BYTES: Final = 64 * 1024
#: Of all other paths: prompts with images. IMAGE_MAX_BYTES may raise it; most paths take less.
GENERAL_BYTES: Final = wire.MAX_REQUEST_BYTES
#: Path -> the limit there and below. Proxies pass these bodies on as they come.
LARGE_BYTES: Final[Mapping[str, int]] = {
    FILES: files.MAX_FILE_BYTES + FORM_BYTES,
    MESSAGE_BATCHES: 32 << 20,
    PAGE_OF_FILES: files.MAX_BATCH_BYTES + FORM_BYTES,
}


def of_path(path: str) -> int:
    return next((most for large, most in LARGE_BYTES.items() if path == large or path.startswith(f"{large}/")), GENERAL_BYTES)
