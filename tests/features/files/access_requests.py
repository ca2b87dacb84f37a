"""The requests of the access matrix for files."""

from collections.abc import Callable
from typing import Any

from features.files import contract

NO_FILE = f"file-{'a' * 26}"

REQUESTS: dict[str, Callable[[], Any]] = {
    "gateway.getFile": lambda: contract.GetFile(NO_FILE),
    "gateway.deleteFile": lambda: contract.DeleteFile(NO_FILE),
}
BODIES: dict[str, Callable[[], Any]] = {
    "POST /v1/files": dict,
    "GET /v1/files": lambda: None,
    "GET /v1/files/{file}": lambda: None,
    "GET /v1/files/{file}/content": lambda: None,
    "DELETE /v1/files/{file}": lambda: None,
    "POST /v1/uploads": dict,
    "POST /v1/uploads/{upload}": dict,
}
