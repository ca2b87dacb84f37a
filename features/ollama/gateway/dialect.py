"""How Ollama's API says what every API says. Pure."""

import msgspec

from features.ollama.feature import API
from services.gateway.http_api.http_errors import HttpDialect
from services.gateway.http_api.response_formats import ErrorBody
from shared.types import RequestId


class OllamaErrorBody(msgspec.Struct, frozen=True):
    #: All that its clients show.
    error: str
    code: str
    param: str | None
    request_id: RequestId


def error_body(shown: ErrorBody, _code: int = 0) -> OllamaErrorBody:
    error = shown.error
    return OllamaErrorBody(f"{error.message} – {error.hint}" if error.hint else error.message, error.code, error.param, error.request_id)


DIALECT = HttpDialect(
    prefix=API.prefix,
    tag=API.vendor,
    error=OllamaErrorBody,
    write_error=error_body,
    media_type="application/x-ndjson",
    missing_hint="administrators choose the models of a mesh, with `aicli models`",
)
