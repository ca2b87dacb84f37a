"""Who may call the methods of files."""

from shared.access_rules import person
from shared.types import Permission

_INFER = person(Permission.INFER)

METHODS = {"gateway.listFiles": _INFER, "gateway.getFile": _INFER, "gateway.deleteFile": _INFER}
ROUTES = {
    "POST /v1/files": _INFER,
    "GET /v1/files": METHODS["gateway.listFiles"],
    "GET /v1/files/{file}": METHODS["gateway.getFile"],
    "GET /v1/files/{file}/content": METHODS["gateway.getFile"],
    "DELETE /v1/files/{file}": METHODS["gateway.deleteFile"],
    "POST /v1/uploads": _INFER,
    "POST /v1/uploads/{upload}": _INFER,
}
